"""The one training loop. Which weights move, how fast, and on what loss are values passed in."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alloytune.errors import InputError, NotFiniteError
from alloytune.machine import Machine
from alloytune.tasks.task import Batch
from alloytune.train.clip import Clip
from alloytune.train.moving import Still
from alloytune.train.optimizers import Optimizer
from alloytune.train.row_adamw import sparse_gradients

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Step:
    """One finished update. `rate` is the largest of all groups.

    `loss` is the mean over the update's targets; where several things are learned, the sum of their means.
    """

    update: int
    loss: float
    grad_norm: float
    rate: float
    num_targets: int
    num_tokens: int


def training_steps(
    model: nn.Module,
    optimizer: Optimizer,
    updates: Iterable[list[Batch]],
    summed_loss: Loss,
    machine: Machine,
    *,
    still: Callable[[int], Still],
    multiplier: Callable[[int], float],
    clip: Clip,
    seed: int,
    done: int = 0,
) -> Iterator[Step]:
    """Train, giving control back after every update.

    `updates` are the micro-batches of update `done` + 1 and on; the loss is divided by the targets of the update that
    are of the same learning, so that how it is split changes nothing. `still` lets move what moves in an update, by its
    number, and gives what holds the rest of weights that move in part. `multiplier` gives the rate's multiplier by
    update number; `clip` limits the gradients and gives their norm before that. Every update draws its random numbers
    from `seed` and its own number, so that a resumed run draws the same.
    Raises NotFiniteError before the update when loss or gradient is not finite.
    """
    for number, micro_batches in enumerate(updates, done + 1):
        held = still(number)
        model.train()
        optimizer.train()
        torch.manual_seed(update_seed(seed, number))
        num_targets = sum(batch.num_targets for batch in micro_batches)
        with sparse_gradients(model, optimizer.tables):
            loss = add_gradients(model, micro_batches, summed_loss, machine)
        held.clear_gradients()
        grad_norm = float(clip(optimizer.param_groups))
        _stop_unless_finite(loss, grad_norm, number, micro_batches)
        rate = _set_rates(optimizer, multiplier(number))
        with held.during_update(optimizer):
            optimizer.step()
        optimizer.zero_grad()
        num_tokens = sum(batch.num_tokens for batch in micro_batches)
        yield Step(number, loss, grad_norm, rate, num_targets, num_tokens)


def add_gradients(model: nn.Module, micro_batches: list[Batch], summed_loss: Loss, machine: Machine) -> float:
    """Add the gradient of the mean loss over an update's targets to the weights'; give that loss.

    Where several things are learned, it is the sum of the means of each.
    """
    num_targets = Counter[str | None]()
    for batch in micro_batches:
        num_targets[batch.learning] += batch.num_targets
    shares: list[Tensor] = []
    # autocast keeps what it casts of weights until it is left: once for all micro-batches
    with machine.autocast() if len(micro_batches) > 1 else nullcontext():
        for batch in micro_batches:
            with machine.autocast():
                share = summed_loss(model, batch.to(machine.device)) / num_targets[batch.learning]
            _require_part(share)
            with torch.autocast(machine.device.type, enabled=False):
                share.backward()
            shares.append(share.detach())
    return float(torch.stack(shares).sum())


def _require_part(loss: Tensor) -> None:
    if not loss.requires_grad:
        what = "none of the weights that move has a part in what the model puts out"
        raise InputError("train", what, "select others, such as all")


def _set_rates(optimizer: Optimizer, multiplier: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * multiplier
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _stop_unless_finite(loss: float, grad_norm: float, number: int, micro_batches: list[Batch]) -> None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
    rows = [row for batch in micro_batches for row in batch.rows]
    shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    raise NotFiniteError(
        f"update {number}: {what}; stopped before it changed a weight. Rows of this update: {shown}. "
        "A lower rate, a longer warm-up or precision: float32 usually mends it"
    )


def update_seed(seed: int, number: int) -> int:
    """Give one seed per update, without the neighbours' streams touching (splitmix64's constant)."""
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63
