"""Trying a model: as it answers when it is used, and whether two ways of calling it give the same."""

from collections.abc import Iterator
from contextlib import contextmanager

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


def agree(outputs: Tensor, expected: Tensor) -> bool:
    """Tell whether outputs are the expected ones but for rounding; those that are not finite are not."""
    off, largest = (outputs - expected).abs().max(), expected.abs().max()
    return bool(off <= TOLERANCE * largest.clamp(min=torch.finfo(torch.float32).tiny))
