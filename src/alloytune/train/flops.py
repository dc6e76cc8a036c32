"""How many floating-point operations training takes, counted on real batches."""

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from alloytune.machine import Machine
from alloytune.tasks.task import Batch
from alloytune.train.loop import Loss, add_gradients


def count_flops(model: nn.Module, micro_batches: list[Batch], summed_loss: Loss, machine: Machine) -> int:
    """Count the forward and backward passes of one update.

    Which weights move counts: a frozen one needs no gradient. The number depends on shapes alone, so it is the same
    after a resume. Matrix products and attention are counted, as torch's FlopCounterMode does; nothing is trained.
    """
    model.train()
    with FlopCounterMode(display=False) as counter:
        add_gradients(model, micro_batches, summed_loss, machine)
    model.zero_grad()
    return int(counter.get_total_flops())


def flops_per_token(model: nn.Module, micro_batches: list[Batch], summed_loss: Loss, machine: Machine) -> float:
    """Give the operations of an update by token read; padding costs, but is no token."""
    num_tokens = sum(batch.num_tokens for batch in micro_batches)
    return count_flops(model, micro_batches, summed_loss, machine) / num_tokens
