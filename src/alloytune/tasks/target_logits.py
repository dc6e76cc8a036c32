"""What a model foretells at the positions that carry loss, and at no others.

With a vocabulary of a quarter of a million tokens the logits of all positions are the largest thing in memory. The head
is given only the hidden states that are asked for, by a hook on it, so that whatever the model does to its logits
afterwards (scaling, capping) is still done. Logits that are not asked for are never computed. Where nothing is done
afterwards, the loss takes the hidden states themselves, a few at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from alloytune.tasks.uncached import call_uncached
from alloytune.tasks.vocabulary_loss import summed_cross_entropy
from alloytune.trying import evaluating, in_place_of

_gives_as_they_are: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def target_logits(model: Any, inputs: dict[str, Any], chosen: Tensor) -> Tensor:
    """Call a model and give the logits, [chosen, vocabulary] in float32, where `chosen` [rows, tokens] is true."""
    head: nn.Module | None = model.get_output_embeddings()
    if head is None:
        logits: Tensor = call_uncached(model, inputs).logits
        return logits[chosen].float()
    with _only(head, chosen):
        found: Tensor = call_uncached(model, inputs).logits
    return found[0].float()


def target_loss(
    model: Any, inputs: dict[str, Any], chosen: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Call a model and give the cross-entropy, summed, where `chosen` [rows, tokens] is true; `targets` are [chosen].

    Of large vocabularies the logits never stand in memory whole, if the model gives what its head gives.
    """
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and _gives_logits_of(head, model, inputs):
        hidden, _ = _call_without(head, model, inputs)
        return summed_cross_entropy(hidden[chosen], head, targets, label_smoothing)
    logits = target_logits(model, inputs, chosen)
    return cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)


def _gives_logits_of(head: nn.Linear, model: Any, inputs: dict[str, Any]) -> bool:
    """Tell whether a model gives what its head gives, by trying it once on the first row."""
    if model not in _gives_as_they_are:
        first = {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        try:
            with torch.no_grad(), evaluating(model):
                hidden, logits = _call_without(head, model, first)
        except (RuntimeError, IndexError):  # what it adds or cuts does not fit hidden states
            _gives_as_they_are[model] = False
        else:
            _gives_as_they_are[model] = logits is hidden
    return _gives_as_they_are[model]


def _call_without(head: nn.Linear, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Call a model whose head does nothing; give the hidden states that the head is given, and the logits."""
    given: list[Tensor] = []

    def give_back(hidden: Tensor) -> Tensor:
        given.append(hidden)
        return hidden

    with in_place_of(head, give_back):
        logits = call_uncached(model, inputs).logits
    return given[-1], logits


@contextmanager
def _only(head: nn.Module, chosen: Tensor) -> Iterator[None]:
    def choose(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][chosen][None], *given[1:])

    hook = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
