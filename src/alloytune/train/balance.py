"""Weights of views that training finds: by validation, by GradNorm, by uncertainty.

What is remembered stands in the blend's memory, which checkpoints hold.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from alloytune.tasks.task import Batch
from alloytune.train.joint import Blend, Losses, View
from alloytune.train.optimizers import Optimizer

RATE = 0.025  # of the weights' own steps, as in GradNorm's paper
STRENGTH = 1.5  # GradNorm's alpha: how hard a view that lags is pulled along; the paper's for tasks that differ much
LEAST = 1e-3  # of a weight under GradNorm, which knows none below 0
_FIRST = "first loss of "
_LAST = "last loss of "
_LOG_VARIANCE = "log variance of "


class ByValidation:
    """Weighs the view that has learned least the most (in the spirit of AutoLoRa, Xu et al. 2024).

    After every evaluation, what is left of a view's validation loss is r = loss / loss at the first evaluation, and its
    weight is r over the mean of all views' r. Until then all weigh 1.
    """

    def __init__(self, blend: Blend, views: Collection[View]) -> None:
        self._blend = blend
        self.views = views

    def after_evaluation(self, losses: Mapping[View, float]) -> None:
        """Take note of the views' mean losses on validation."""
        first = self._blend.recall(_FIRST) or dict(losses)
        self._blend.remember(_FIRST, first)
        self._blend.remember(_LAST, losses)
        self._blend.give(_around_one(_left(losses, first)))


class ByUncertainty:
    """Weighs every view by what its loss leaves uncertain (Kendall et al. 2018).

    The views' sum is exp(-s) * loss + s / 2, with s, the log of a variance, learned by gradient steps of its own
    beginning at 0; the weight is exp(-s), which draws near to 1 / (2 * loss).
    """

    def __init__(self, blend: Blend, views: Collection[View]) -> None:
        self._blend = blend
        self._seen = _Means(views)

    def note(self, losses: Losses, batch: Batch) -> None:
        """Take in the losses of views, summed over the targets of a batch."""
        self._seen.add(losses, batch)

    @contextmanager
    def around(self, optimizer: Optimizer) -> Iterator[None]:
        """Step, then find the weights of the next update."""
        yield
        losses = self._seen.take()
        known = self._blend.recall(_LOG_VARIANCE)
        spread = {view: known.get(view, 0.0) for view in losses}
        spread = {view: s + RATE * (math.exp(-s) * losses[view] - 0.5) for view, s in spread.items()}
        self._blend.remember(_LOG_VARIANCE, spread)
        self._blend.give({view: math.exp(-s) for view, s in spread.items()})


class ByGradients:
    """Lets views pull alike hard on the weights that they share, and harder where one lags (Chen et al. 2018).

    With n the norm of a view's gradient on the `shared` weights, and r its loss / first loss over the mean of that, the
    weights w take a step down |w * n - mean(w * n) * r^STRENGTH|, whose right side is held; then they are scaled to a
    mean of 1. A step is RATE * n / mean(n), so that the losses' units do not count.
    """

    def __init__(self, blend: Blend, views: Collection[View], shared: Sequence[nn.Parameter]) -> None:
        self._blend = blend
        self._shared = shared
        self._seen = _Means(views)
        self._gradients: dict[View, list[Tensor]] = {}

    def note(self, losses: Losses, batch: Batch) -> None:
        """Take in the losses of views, summed over the targets of a batch, and their gradients."""
        self._seen.add(losses, batch)
        for view in losses.keys() & self._seen.views:
            found = torch.autograd.grad(losses[view], self._shared, retain_graph=True, materialize_grads=True)
            before = self._gradients.get(view)
            summed = found if before is None else (one + other for one, other in zip(before, found, strict=True))
            self._gradients[view] = list(summed)

    @contextmanager
    def around(self, optimizer: Optimizer) -> Iterator[None]:
        """Step, then find the weights of the next update."""
        yield
        targets, losses = self._seen.targets, self._seen.take()
        norms = {view: _norm(self._gradients[view]) / targets[view] for view in losses}
        self._gradients = {}
        first = self._blend.recall(_FIRST) or losses
        self._blend.remember(_FIRST, first)
        if any(norms.values()):
            self._blend.give(self._stepped(norms, _around_one(_left(losses, first))))

    def _stepped(self, norms: Mapping[View, float], left: Mapping[View, float]) -> dict[View, float]:
        now, mean = self._blend.now, sum(norms.values()) / len(norms)
        pulls = {view: now[view] * norm for view, norm in norms.items()}
        wanted = {view: sum(pulls.values()) / len(pulls) * left[view] ** STRENGTH for view in norms}
        steps = {view: RATE * norms[view] / mean * _sign(pulls[view] - wanted[view]) for view in norms}
        return _around_one({view: max(now[view] - step, LEAST) for view, step in steps.items()})


class _Means:
    """Gathers the mean losses of some views over the micro-batches of an update."""

    def __init__(self, views: Collection[View]) -> None:
        self.views = frozenset(views)
        self.targets: dict[View, int] = {}
        self._sums: dict[View, Tensor] = {}

    def add(self, losses: Losses, batch: Batch) -> None:
        for view in losses.keys() & self.views:
            self._sums[view] = losses[view].detach() + self._sums.get(view, 0.0)
            self.targets[view] = self.targets.get(view, 0) + batch.num_targets

    def take(self) -> dict[View, float]:
        """Give the means, and begin anew."""
        means = {view: float(self._sums[view]) / self.targets[view] for view in sorted(self._sums)}
        self._sums, self.targets = {}, {}
        return means


def last_losses(blend: Blend) -> dict[View, float]:
    """Give the views' losses at the last evaluation, where weights go by them."""
    return blend.recall(_LAST)


def _left(losses: Mapping[View, float], first: Mapping[View, float]) -> dict[View, float]:
    """Give what is left of losses, as parts of the first."""
    return {view: loss / first[view] if first[view] else 1.0 for view, loss in losses.items()}


def _norm(gradients: Sequence[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(gradient)) for gradient in gradients))


def _around_one(values: Mapping[View, float]) -> dict[View, float]:
    """Scale values to a mean of 1."""
    mean = sum(values.values()) / len(values)
    return {view: value / mean if mean else 1.0 for view, value in values.items()}


def _sign(value: float) -> float:
    return math.copysign(1.0, value) if value else 0.0
