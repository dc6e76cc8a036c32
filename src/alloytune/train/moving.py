"""Which weights move and how fast: a value that the loop is given."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alloytune.selected import Selected
from alloytune.train.optimizers import Optimizer, OptimizerSettings, ParamGroup, make_parts

Role = Literal["embeddings", "layers", "head", "adapter", "other"]
Part = Literal["full", "partial", "adapter", "head"]  # of a joint objective
Around = Callable[[Optimizer], AbstractContextManager[None]]


@dataclass(frozen=True)
class Group:
    """Weights, by name, that move at one rate with one decay and play one role.

    `start` is the starting value that `rate: auto` took the rate from; None where the recipe gives the rate. `part` is
    that of a joint objective.
    """

    names: tuple[str, ...]
    rate: float
    weight_decay: float
    role: Role = "layers"
    start: float | None = None
    part: Part | None = None


@dataclass(frozen=True)
class Moving:
    """Everything that may move in a stage, and by what. `masks` tell, in a weight's shape, which elements move."""

    groups: tuple[Group, ...]
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # only for weights of which not all elements move

    @property
    def names(self) -> frozenset[str]:
        """Give the names of all weights that move."""
        return frozenset(name for group in self.groups for name in group.names)

    @property
    def rates(self) -> list[float]:
        """Give the rates that there are, largest first."""
        return sorted({group.rate for group in self.groups}, reverse=True)

    @property
    def selected(self) -> Selected:
        """Give which elements move."""
        return Selected(self.names, self.masks)

    def slower(self, factor: float) -> "Moving":
        """Give the same weights at rates times `factor`."""
        return replace(self, groups=tuple(replace(group, rate=group.rate * factor) for group in self.groups))

    def num_moving(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Give how many elements move."""
        return sum(int(self.masks[name].sum()) if name in self.masks else prod(shapes[name]) for name in self.names)


class Still:
    """Holds still what masks leave out: such an element keeps its bits, and so does the optimizer's memory of it.

    It gets no gradient, so that clipping does not count it, and whatever else an update does to it (decay, momentum, a
    projection over the whole matrix) is taken back. Nothing is done where there is no mask. `around` is entered around
    the optimizer's step as well.
    """

    def __init__(
        self, masks: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter], around: Around | None = None
    ) -> None:
        self._around = around or (lambda optimizer: nullcontext())
        self._unmoved = [(weights[name], ~mask.to(weights[name].device)) for name, mask in masks.items()]

    def clear_gradients(self) -> None:
        """Set the gradient of what stays to zero."""
        for weight, unmoved in self._unmoved:
            if weight.grad is not None:
                weight.grad.masked_fill_(unmoved, 0.0)

    @contextmanager
    def during_update(self, optimizer: Optimizer) -> Iterator[None]:
        """Put back the bits of what stays after an update; memory that the update begins is zero there.

        Schedule-free's `z`, between which and the weight it switches, is the weight itself.
        """
        before = [
            {entry: value.clone() for entry, value in _elementwise(optimizer, weight).items()}
            for weight, _ in self._unmoved
        ]
        with self._around(optimizer):
            yield
        for (weight, unmoved), bits in zip(self._unmoved, before, strict=True):
            bits.setdefault("z", bits[""])
            for entry, value in _elementwise(optimizer, weight).items():
                # copies and `where` take a third of the time of indexing by a mask
                value.copy_(torch.where(unmoved, bits.get(entry, torch.zeros_like(value)), value))


def _elementwise(optimizer: Optimizer, weight: nn.Parameter) -> dict[str, Tensor]:
    """Give a weight, and the tensors of its shape that the optimizer keeps for it."""
    memory: Mapping[str, Any] = next((part.state[weight] for part in optimizer.parts if weight in part.state), {})
    kept = {entry: value for entry, value in memory.items() if torch.is_tensor(value)}
    return {"": weight.detach()} | {entry: value for entry, value in kept.items() if value.shape == weight.shape}


def make_optimizer(
    moving: Moving,
    weights: Mapping[str, nn.Parameter],
    anchors: Mapping[str, Tensor] | None = None,
    tables: frozenset[str] = frozenset(),
) -> Optimizer:
    """Make the optimizer over the moving weights; each group remembers its full rate as `peak`.

    Weights that are named in `anchors` decay to that value, all others to zero. Of `tables`, those that move whole and
    do not decay are updated by rows.
    """
    whole = tables - moving.masks.keys()
    groups = [each for group in moving.groups for each in _param_groups(group, weights, anchors or {}, whole)]
    return Optimizer(make_parts(moving.optimizer, groups))


def _param_groups(
    group: Group, weights: Mapping[str, nn.Parameter], anchors: Mapping[str, Tensor], tables: frozenset[str]
) -> Iterator[ParamGroup]:
    shared = {"lr": group.rate, "peak": group.rate, "role": group.role, "part": group.part}
    held = [name for name in group.names if name in anchors and group.weight_decay]
    by_rows = [] if group.weight_decay else [name for name in group.names if name in tables]
    free = [name for name in group.names if name not in (*held, *by_rows)]
    if by_rows:
        yield {**shared, "params": [weights[name] for name in by_rows], "by_rows": True}
    if free:
        yield {**shared, "params": [weights[name] for name in free], "weight_decay": group.weight_decay}
    if held:
        anchored = {weights[name]: anchors[name] for name in held}
        yield {**shared, "params": [*anchored], "weight_decay": 0.0, "pull": group.weight_decay, "anchors": anchored}
