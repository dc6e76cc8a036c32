"""Range test: the rate rises update by update until the loss breaks away (Smith 2017, arXiv:1506.01186).

A short sweep cannot say which rate ends best, but it shows where training stops to work. That point moves with the
model, the data and what trains; the rate that ends best lies a nearly constant factor below the sweep's best loss. The
fewer updates a sweep has, the more its lowest loss is chance, and the less it counts beside the starting rate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from alloytune.errors import NotFiniteError
from alloytune.machine import Machine
from alloytune.tasks.task import Batch
from alloytune.train.clip import Clip
from alloytune.train.loop import Loss, training_steps, update_seed
from alloytune.train.moving import Still
from alloytune.train.optimizers import Optimizer

LOWEST, HIGHEST = 0.1, 30.0  # of the starting rate
WIDTH = 0.15  # powers of ten over which neighbours in the sweep are averaged
BELOW = 0.3  # of the rate with the lowest loss; docs/rates.md
EQUALS = 20  # updates of a sweep that counts as much as the starting rate; docs/rates.md
BROKEN = 0.5  # of the most that the loss fell: once it has risen so far above the untrained model's, the sweep is over
STEADY = -0.5  # rank correlation of the loss with the rate, up to the lowest, at which a sweep is believed
SEARCH_SHARE = 0.1  # of a stage, for the sweep and the look at the loss beforehand, a third of it
FEWEST, MOST = 8, 100  # updates of a sweep
FEWEST_SEARCHED = math.ceil(FEWEST / (SEARCH_SHARE * 3 / 4))  # updates of a stage that is long enough for one sweep


@dataclass(frozen=True)
class RangeTest:
    """A sweep. `multipliers` of the starting rates, rising, and the change of the loss that each led to.

    `chosen` is the multiplier to train with; None where nothing can be said: no rate lowered the loss, or it was lowest
    after it had broken away, when a model that learns nothing any more meets rows that suit it, or by chance, after it
    had gone up and down.
    """

    multipliers: tuple[float, ...]
    changes: tuple[float, ...]

    @property
    def chosen(self) -> float | None:
        """Give BELOW times the multiplier with the lowest smoothed loss; the shorter the sweep, the nearer to 1."""
        if len(self.changes) < 2:
            return None
        changes = np.array(self.changes)
        smooth = _smooth(np.log10(self.multipliers), changes)
        best = int(smooth.argmin())
        gain = -float(smooth[best])
        has_broken = bool((smooth[:best] > BROKEN * gain).any())
        if gain <= 0 or has_broken or not _falls(changes[: best + 1]):
            return None
        trust = len(smooth) / (len(smooth) + EQUALS)
        return float((BELOW * self.multipliers[best]) ** trust)


def _falls(changes: np.ndarray) -> bool:
    """Tell whether values go down for the most part: by Spearman's rank correlation with their order."""
    if len(changes) < 2:
        return True
    ranks = changes.argsort().argsort()
    return bool(np.corrcoef(np.arange(len(changes)), ranks)[0, 1] <= STEADY)


def num_sweep_updates(num_updates: float, num_sweeps: int = 1) -> int:
    """Give the updates of each of the sweeps for a stage of so many, 0 where it is too short for them."""
    affordable = int(num_updates * SEARCH_SHARE * 3 / 4) // num_sweeps
    return min(affordable, MOST) if affordable >= FEWEST else 0


def range_test(
    model: nn.Module,
    optimizer: Optimizer,
    updates: Sequence[list[Batch]],
    summed_loss: Loss,
    machine: Machine,
    *,
    still: Callable[[int], Still],
    clip: Clip,
    seed: int,
) -> RangeTest:
    """Sweep the rate over `updates`; the model's weights are worn out afterwards.

    Every loss is compared with that of the untrained weights on the same rows under the same dropout, so that an
    easy batch is not taken for a good rate.
    """
    before = [_loss(model, batches, summed_loss, machine, update_seed(seed, n)) for n, batches in enumerate(updates, 1)]
    ratio = HIGHEST / LOWEST
    multipliers = [LOWEST * ratio ** (n / (len(updates) - 2)) for n in range(len(updates) - 1)]
    changes: list[float] = []
    steps = training_steps(
        model,
        optimizer,
        updates,
        summed_loss,
        machine,
        still=still,
        multiplier=lambda update: multipliers[min(update, len(multipliers)) - 1],
        clip=clip,
        seed=seed,
    )
    try:
        for old, step in zip(before, steps, strict=False):
            changes.append(step.loss - old)
    except NotFiniteError:
        pass  # the sweep has gone as far as it can
    changes = changes[1:]  # the loss of an update shows what the rates before it did
    return RangeTest(tuple(multipliers[: len(changes)]), tuple(changes))


@torch.no_grad()
def _loss(model: nn.Module, micro_batches: list[Batch], summed_loss: Loss, machine: Machine, seed: int) -> float:
    """Give the mean loss of an update's targets, with the dropout that the update will draw."""
    model.train()
    torch.manual_seed(seed)
    with machine.autocast():
        losses = [summed_loss(model, batch.to(machine.device)) for batch in micro_batches]
    return float(torch.stack(losses).sum()) / sum(batch.num_targets for batch in micro_batches)


def _smooth(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average values with their neighbours, weighted by a Gaussian of WIDTH over their places."""
    weights = np.exp(-0.5 * ((places[:, None] - places[None, :]) / WIDTH) ** 2)
    averaged: np.ndarray = weights @ values / weights.sum(axis=1)
    return averaged
