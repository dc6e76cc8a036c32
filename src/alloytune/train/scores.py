"""Scores of weights: how much a tensor, or each of its elements, is worth training.

What each score means, and where it comes from, stands beside its word in `alloytune.expression.SCORES`. A batch's
gradient takes the place of an example's everywhere, as in the authors' own code.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from alloytune.errors import NotFiniteError
from alloytune.machine import Machine
from alloytune.models.weights import free_only, named_weights
from alloytune.tasks.task import Batch
from alloytune.train.loop import Loss, add_gradients

OF_GRADIENTS = ("rgn", "snr", "fisher", "gradient", "lowrank_misfit")
OF_CHANGE = ("weight_change",)
_NORMAL_IQR = 1.349  # distance of the quartiles of a normal distribution of variance 1


@dataclass
class Gradient:
    """What the gradients of some batches were for one weight: means over the batches, of the shape of the weight."""

    mean: Tensor
    mean_square: Tensor
    mean_norm: float  # mean of the norms, not norm of the mean


@dataclass(frozen=True)
class Facts:
    """What a weight's scores are made of; what they do not need may be absent.

    `rank` is lowrank_misfit's. `changed` is what weight_change compares with `pretrained`, where it is not `weight`.
    """

    weight: Tensor
    gradient: Gradient | None = None
    pretrained: Tensor | None = None
    rank: int = 8
    changed: Tensor | None = None


def measure_gradients(
    model: nn.Module,
    names: frozenset[str],
    updates: Iterable[list[Batch]],
    summed_loss: Loss,
    machine: Machine,
    num_batches: int,
) -> dict[str, Gradient]:
    """Measure the gradients of these weights over the first batches; no weight moves.

    The model is in evaluation mode, so that dropout adds no noise.
    Raises NotFiniteError when a loss or a gradient is not finite.
    """
    free_only(model, names)
    model.eval()
    weights = {name: weight for name, weight in named_weights(model).items() if name in names}
    found = {name: Gradient(torch.zeros_like(w), torch.zeros_like(w), 0.0) for name, w in weights.items()}
    for number, micro_batches in enumerate(islice(updates, num_batches), 1):
        loss = add_gradients(model, micro_batches, summed_loss, machine)
        if not math.isfinite(loss):
            raise NotFiniteError(f"measuring: the loss of batch {number} is {loss}; precision: float32 may mend it")
        for name, weight in weights.items():
            if weight.grad is not None:
                _add(found[name], weight.grad, num_batches)
            weight.grad = None
    for name, gradient in found.items():
        if not math.isfinite(gradient.mean_norm):
            raise NotFiniteError(f"measuring: the gradient of {name} is not finite; precision: float32 may mend it")
    return found


def _add(gradient: Gradient, new: Tensor, num_batches: int) -> None:
    gradient.mean.add_(new, alpha=1 / num_batches)
    gradient.mean_square.addcmul_(new, new, value=1 / num_batches)
    gradient.mean_norm += float(new.norm()) / num_batches


def tensor_score(score: str, facts: Facts) -> float | None:
    """Give a tensor's score; None where it has none: norms relative to weights that are all zero."""
    value = float(_TENSOR[score](facts))
    return value if math.isfinite(value) else None


def element_scores(score: str, facts: Facts) -> Tensor:
    """Give the scores of a tensor's elements, in its shape."""
    return _ELEMENT[score](facts)


def largest(values: Mapping[str, Tensor], amount: float | int) -> dict[str, Tensor]:
    """Mark the largest elements of some tensors taken together: a number of them, or the nearest to a share.

    Exactly as many are marked as were asked for; of equal ones the first.
    """
    flat = torch.cat([value.detach().flatten().cpu() for value in values.values()])
    count = amount if isinstance(amount, int) else max(1, round(amount * flat.numel()))
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > threshold
    mask[(flat == threshold).nonzero()[: count - int(mask.sum())]] = True
    parts = mask.split([value.numel() for value in values.values()])
    return {name: part.reshape(value.shape).clone() for (name, value), part in zip(values.items(), parts, strict=True)}


def _gradient(facts: Facts) -> Gradient:
    assert facts.gradient is not None
    return facts.gradient


def _change(facts: Facts) -> Tensor:
    assert facts.pretrained is not None
    now = facts.weight if facts.changed is None else facts.changed
    return (now - facts.pretrained).abs()


def _snr(facts: Facts) -> Tensor:
    """Give mean^2 / variance over the batches; 0 where the gradient is always 0.

    A variance within rounding counts as rounding, so that a gradient which never changes has a finite ratio.
    """
    gradient = _gradient(facts)
    signal = gradient.mean.square()
    rounding = torch.finfo(signal.dtype).eps * gradient.mean_square
    return torch.where(signal > 0, signal / torch.maximum(gradient.mean_square - signal, rounding), 0.0)


def _spectral_snr(facts: Facts) -> float:
    """Give Spectrum's ratio: sum of the singular values above the bound / sum of the others / the largest.

    The bound is that of Marchenko and Pastur for noise whose scale is estimated from the quartiles of the values:
    sigma (1 + sqrt(rows / columns)), the smaller of the two above. Where nothing is below the bound, the sum is 1.
    """
    matrix = facts.weight.detach().flatten(0, -2)
    values = torch.linalg.svdvals(matrix)
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.75], device=values.device))
    sigma = (quartiles[1] - quartiles[0]) / _NORMAL_IQR
    above = values > sigma * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
    noise = float(values[~above].sum()) if not bool(above.all()) else 1.0
    return float(values[above].sum()) / noise / float(values[0]) if values[0] > 0 else math.nan


def _lowrank_misfit(facts: Facts) -> float:
    """Give 1 - (squares of the `rank` largest singular values of the mean gradient / squares of all)."""
    energies = torch.linalg.svdvals(_gradient(facts).mean.flatten(0, -2)).square()
    return float(energies[facts.rank :].sum()) / max(float(energies.sum()), torch.finfo(energies.dtype).tiny)


_TENSOR: dict[str, Callable[[Facts], float | Tensor]] = {
    "rgn": lambda facts: _gradient(facts).mean_norm / facts.weight.norm(),
    "gradient": lambda facts: _gradient(facts).mean_norm,
    "fisher": lambda facts: _gradient(facts).mean_square.mean(),
    "snr": lambda facts: _snr(facts).mean(),
    "weight_change": lambda facts: _change(facts).norm() / facts.pretrained.norm(),  # type: ignore[union-attr]
    "spectral_snr": _spectral_snr,
    "lowrank_misfit": _lowrank_misfit,
}
_ELEMENT: dict[str, Callable[[Facts], Tensor]] = {
    "gradient": lambda facts: _gradient(facts).mean.abs(),
    "fisher": lambda facts: _gradient(facts).mean_square,
    "snr": _snr,
    "weight_change": _change,
}
