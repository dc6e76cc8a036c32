"""Layers that keep their inputs alone, and compute the rest again when the gradient needs it (Chen et al. 2016)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

Again = Callable[[], AbstractContextManager[Any]]  # asked when a layer is called, for a context to call it in again


def can_recompute(model: nn.Module) -> bool:
    """Tell whether a model's layers can."""
    return bool(getattr(model, "supports_gradient_checkpointing", False))


@contextmanager
def recomputing(model: Any, again: Sequence[Again]) -> Iterator[None]:
    """Have a model's layers do so while it trains, with the dropout that they drew before.

    transformers' own `activation_checkpointing_enable` has embeddings ask for gradients, too, also of frozen layers.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _within([make() for make in again])

    recomputed = partial(checkpoint, use_reentrant=False, context_fn=contexts)
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=recomputed)
    try:
        yield
    finally:
        model._set_gradient_checkpointing(enable=False)


@contextmanager
def _within(contexts: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
