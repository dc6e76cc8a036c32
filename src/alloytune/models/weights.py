"""The weights of a model by name: which of them move, copies of them, putting copies back."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from alloytune.models.tree import canonical_name

Weights = dict[str, Tensor]


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Give every parameter by its canonical name; tied weights once."""
    return {canonical_name(name): weight for name, weight in model.named_parameters()}


def free_only(model: nn.Module, names: frozenset[str]) -> None:
    """Let exactly these weights move and freeze all others."""
    for name, weight in named_weights(model).items():
        weight.requires_grad_(name in names)
        weight.grad = None


def copy_weights(model: nn.Module, names: Iterable[str]) -> Weights:
    """Copy weights to main memory."""
    weights = named_weights(model)
    return {name: weights[name].detach().to("cpu", copy=True) for name in sorted(names)}


@torch.no_grad()
def put_weights(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put copies back in place; every name and shape must be there."""
    weights = named_weights(model)
    for name, value in saved.items():
        weights[name].copy_(value)
