"""Logits of the positions that carry loss, and of no others.

With a vocabulary of a quarter of a million tokens the logits of all positions are the largest thing in memory. The head
is given only the hidden states that are asked for, by a hook on it, so that whatever the model does to its logits
afterwards (scaling, capping) is still done. Logits that are not asked for are never computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from alloytune.tasks.uncached import call_uncached


def target_logits(model: Any, inputs: dict[str, Any], chosen: Tensor) -> Tensor:
    """Call a model and give the logits, [chosen, vocabulary] in float32, where `chosen` [rows, tokens] is true."""
    head: nn.Module | None = model.get_output_embeddings()
    if head is None:
        logits: Tensor = call_uncached(model, inputs).logits
        return logits[chosen].float()
    with _only(head, chosen):
        found: Tensor = call_uncached(model, inputs).logits
    return found[0].float()


@contextmanager
def _only(head: nn.Module, chosen: Tensor) -> Iterator[None]:
    def choose(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][chosen][None], *given[1:])

    hook = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
