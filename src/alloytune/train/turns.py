"""What moves in a stage as a function of the update: a course gives turns, and all that is not in a turn rests."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alloytune.models.weights import copy_weights, free_only, named_weights
from alloytune.selected import Selected
from alloytune.train.moving import Around, Still
from alloytune.train.optimizers import Optimizer

Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Turn:
    """What moves for some updates; `notes` say for the record by what that was decided."""

    number: int
    selected: Selected
    notes: Mapping[str, Any] = field(default_factory=dict)


class Course(Protocol):
    """Decides what moves, turn by turn. `memory` is what it knows of earlier turns, by the name of a weight."""

    memory: Memory

    def number(self, update: int, share: float) -> int:
        """Give the turn that an update belongs to; `share` of the stage lies before it."""

    def turn(self, number: int) -> Turn:
        """Decide a turn that begins now, with the weights as they are."""


class Series:
    """Turns of equal length, each decided by its number; the `last` one, if any, goes on to the end."""

    def __init__(self, turn: Callable[[int], Turn], every: int = 1, last: int | None = 0) -> None:
        self.turn = turn
        self.every = every
        self.last = math.inf if last is None else last
        self.memory: Memory = {}

    def number(self, update: int, share: float) -> int:
        """Count whole turns before the update."""
        return int(min((update - 1) // self.every, self.last))


def steady(selected: Selected) -> Series:
    """Give the course of a stage in which the same moves all the time."""
    return Series(lambda number: Turn(number, selected))


class Settling:
    """Freezes the lowest layers once they have settled, for the rest of a stage (after AutoFreeze, Liu et al. 2021).

    `layers` are what moves of each layer, bottom first. At every check, when a further share `check` of the stage is
    done, each layer's change since the check before is measured, ||now - then|| / ||then|| over all its weights. The
    longest run of layers from the bottom that changed by less than `least` is frozen; the top layer never is.
    """

    def __init__(
        self,
        selected: Selected,
        layers: Sequence[frozenset[str]],
        model: nn.Module,
        least: float,
        check: float,
    ) -> None:
        self.memory: Memory = {}  # the weights of the layers that still move, at the last check
        self._selected = selected
        self._layers = layers
        self._model = model
        self._least = least
        self._check = check

    def number(self, update: int, share: float) -> int:
        """Count the checks before the update."""
        return math.floor(share / self._check + 1e-9)

    def turn(self, number: int) -> Turn:
        """Compare the layers with the last check, and go on without those that have settled."""
        standing = [layer for layer in self._layers if not self.memory or layer & self.memory.keys()]
        changes = [self._change(layer) for layer in standing] if self.memory else []  # at the first there is no before
        num_settled = len(list(takewhile(lambda change: change < self._least, changes[:-1])))
        standing = standing[num_settled:]
        frozen = self._layers[: len(self._layers) - len(standing)]
        self.memory = copy_weights(self._model, frozenset[str]().union(*standing))
        rest = frozenset[str]().union(*frozen)
        return Turn(number, self._selected - Selected(rest), {"changes": changes, "num_frozen": len(frozen)})

    def _change(self, layer: Iterable[str]) -> float:
        now = copy_weights(self._model, layer)
        moved = math.hypot(*(float((weight - self.memory[name]).norm()) for name, weight in now.items()))
        then = math.hypot(*(float(self.memory[name].norm()) for name in now))
        return moved / max(then, torch.finfo(torch.float32).tiny)


class Turns:
    """Lets move what a course says. What rests has no gradient, so that nothing steps, decays or counts it.

    Where it `forgets`, the optimizer's memory of a weight is dropped when the weight rests, or when other elements of
    it move than before. `names` are all that may move in any turn. `on_turn` is told of every turn that begins, of its
    first update, and how many elements of each weight move. `at_share` is told, before every update, what share of the
    stage lies behind; `around` is entered around every step of the optimizer.
    """

    def __init__(
        self,
        course: Course,
        names: frozenset[str],
        model: nn.Module,
        optimizer: Optimizer,
        *,
        forgets: bool = False,
        on_turn: Callable[[Turn, int, Mapping[str, int]], None] = lambda turn, update, counts: None,
        at_share: Callable[[float], None] = lambda share: None,
        around: Around | None = None,
    ) -> None:
        self.names = names
        self._course = course
        self._model = model
        self._weights: Mapping[str, nn.Parameter] = named_weights(model)
        self._optimizer = optimizer
        self._forgets = forgets
        self._on_turn = on_turn
        self._at_share = at_share
        self._around = around
        self._turn: Turn | None = None

    def at(self, update: int, share: float) -> Still:
        """Let move what moves in an update, with `share` of the stage before it; give what holds single elements."""
        self._at_share(share)
        number = self._course.number(update, share)
        if self._turn is None or number != self._turn.number:
            turn = self._course.turn(number)
            if self._forgets:
                self._optimizer.forget({self._weights[name] for name in self._changed(turn.selected)})
            self._begin(turn)
            self._on_turn(turn, update, self._counts)
        return self._still

    @property
    def num_moving(self) -> int:
        """Give how many elements move in the turn."""
        return sum(self._counts.values())

    def state(self) -> tuple[Memory, dict[str, Any]]:
        """Give what a resume needs, as tensors and in JSON's types."""
        assert self._turn is not None
        masks = {f"mask|{name}": mask for name, mask in self._turn.selected.masks.items()}
        memory = {f"memory|{name}": tensor for name, tensor in self._course.memory.items()}
        return masks | memory, {"number": self._turn.number, "names": sorted(self._turn.selected.names)}

    def put(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on in the middle of a turn, from what `state` gave."""
        kinds: dict[str, Memory] = {"mask": {}, "memory": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("|")
            kinds[kind][name] = tensor
        self._course.memory = kinds["memory"]
        self._begin(Turn(state["number"], Selected(frozenset(state["names"]), kinds["mask"])))

    def _begin(self, turn: Turn) -> None:
        free_only(self._model, turn.selected.names)
        self._turn = turn
        self._still = Still(turn.selected.masks, self._weights, self._around)
        self._counts = turn.selected.counts({name: tuple(weight.shape) for name, weight in self._weights.items()})

    def _changed(self, selected: Selected) -> frozenset[str]:
        """Give the weights of the stage that do not go on as they are."""
        before = self._turn.selected if self._turn else selected
        return self.names - {name for name in selected.names & before.names if _alike(name, selected, before)}


def _alike(name: str, one: Selected, other: Selected) -> bool:
    """Tell whether the same elements of a weight are selected."""
    mask, other_mask = one.masks.get(name), other.masks.get(name)
    return mask is other_mask if mask is None or other_mask is None else torch.equal(mask, other_mask)
