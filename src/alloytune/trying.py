"""Trying a model: as it answers when it is used, with a part that does something else, and whether two ways agree."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Of the largest output: rounding in float32 stays below, a model that sees what it should not is far above.
TOLERANCE = 1e-4


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode, and then in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def in_place_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module do something else when it is called, and what it did before afterwards."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def agree(outputs: Tensor, expected: Tensor) -> bool:
    """Tell whether outputs are the expected ones but for rounding; those that are not finite are not."""
    off, largest = (outputs - expected).abs().max(), expected.abs().max()
    return bool(off <= TOLERANCE * largest.clamp(min=torch.finfo(torch.float32).tiny))
