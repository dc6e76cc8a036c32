"""What keeps a stage from learning its rows by heart: dropout, mixout, label smoothing and R-Drop."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import log_softmax
from torch.nn.modules.dropout import _DropoutNd

from alloytune.models.tree import canonical_name
from alloytune.tasks.task import Batch, Task
from alloytune.train.loop import Loss


def make_loss(task: Task, *, label_smoothing: float = 0.0, r_drop: float = 0.0) -> Loss:
    """Give the task's summed loss; with `r_drop`, that of two passes and what lies between them (Liang et al. 2021).

    R-Drop's loss is the mean of both passes' losses plus `r_drop` times the mean of the Kullback-Leibler divergences of
    one from the other and back; it takes two passes through the model, and memory for both.
    """

    def of_one_pass(model: nn.Module, batch: Batch) -> Tensor:
        return task.summed_loss(model, batch, label_smoothing)

    def of_two_passes(model: nn.Module, batch: Batch) -> Tensor:
        one, other = task.outputs(model, batch), task.outputs(model, batch)
        losses = task.loss(one, batch, label_smoothing) + task.loss(other, batch, label_smoothing)
        return 0.5 * (losses + r_drop * divergence(one, other))

    return of_two_passes if r_drop else of_one_pass


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Give KL(one, other) + KL(other, one), summed over the targets; logits of [targets, ...choices]."""
    first, second = log_softmax(one, dim=-1), log_softmax(other, dim=-1)
    return ((first.exp() - second.exp()) * (first - second)).sum()


class _Lossy(nn.Module):
    """A model with its loss, as one module to call."""

    def __init__(self, model: nn.Module, summed_loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.summed_loss = summed_loss

    def forward(self, batch: Batch) -> Tensor:
        return self.summed_loss(self.model, batch)


def with_mixout(summed_loss: Loss, anchors: Mapping[str, Tensor], share: float) -> Loss:
    """Give the loss of a model in which a random `share` of each weight's elements stand at their anchors.

    The mixture keeps the weight as its mean (Lee et al. 2020). Drawn anew at every pass; `anchors` by canonical name.
    """

    def mixed_loss(model: nn.Module, batch: Batch) -> Tensor:
        mixed = {
            f"model.{name}": _mix(weight, anchors[canonical_name(name)], share)
            for name, weight in model.named_parameters()
            if canonical_name(name) in anchors and weight.requires_grad  # what rests stands as it is
        }
        loss: Tensor = functional_call(_Lossy(model, summed_loss), mixed, (batch,))
        return loss

    return mixed_loss


def _mix(weight: Tensor, anchor: Tensor, share: float) -> Tensor:
    kept = torch.empty_like(weight).bernoulli_(1.0 - share)
    return anchor + kept * (weight - anchor) / (1.0 - share)


@contextmanager
def dropout_at(model: nn.Module, share: float | None) -> Iterator[None]:
    """Set every dropout of the model, adapters' own left out, and put the old ones back; None changes nothing."""
    places = [] if share is None else [place for place in _dropouts(model) if not place.in_adapter]
    before = [place.share for place in places]
    for place in places:
        place.set(share)
    try:
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.set(old)


def can_drop(model: nn.Module) -> bool:
    """Tell whether the model itself has any place for dropout."""
    return any(not place.in_adapter for place in _dropouts(model))


def drops(model: nn.Module) -> bool:
    """Tell whether anything in the model or its adapter drops anything."""
    return any(place.share for place in _dropouts(model))


@dataclass(frozen=True)
class _Dropout:
    """A number that says which share is dropped: an attribute of a module."""

    module: nn.Module
    key: str
    in_adapter: bool

    @property
    def share(self) -> Any:
        return getattr(self.module, self.key)

    def set(self, share: Any) -> None:
        setattr(self.module, self.key, share)


def _dropouts(model: nn.Module) -> Iterator[_Dropout]:
    """Find the modules that drop, and the numbers, such as `attention_dropout`, that others hand to a function."""
    for name, module in model.named_modules():
        in_adapter = any(word.endswith("_dropout") for word in name.split(".")[:-1])  # PEFT: `lora_dropout.default`
        if isinstance(module, _DropoutNd):
            yield _Dropout(module, "p", in_adapter)
        else:
            numbers = [key for key, value in vars(module).items() if type(value) in (int, float)]
            yield from (_Dropout(module, key, in_adapter) for key in numbers if key.endswith("dropout"))
