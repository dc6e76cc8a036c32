"""One body under several heads: which weights two models of the same source share, whatever their classes."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from alloytune.models.weights import named_weights


def shared_names(model: PreTrainedModel, other: PreTrainedModel) -> dict[str, str]:
    """Give the other model's name for every weight of the body that both have, by this model's name.

    The classes of one kind of model differ in what they put before a name (`bert.`, or nothing where there is no head).
    """
    ours, theirs = _bare_names(model), _bare_names(other)
    one, two = named_weights(model), named_weights(other)
    both = [bare for bare in ours if bare in theirs and one[ours[bare]].shape == two[theirs[bare]].shape]
    return {ours[bare]: theirs[bare] for bare in both}


def share(model: PreTrainedModel, other: PreTrainedModel, names: Mapping[str, str]) -> None:
    """Let the weights of the other model stand in this one, in the same memory, under these names of both.

    Both are without adapters. What is tied to a weight in either stays so.
    """
    one, two = named_weights(model), named_weights(other)
    for ours, theirs in names.items():
        one[ours].data = two[theirs].data
        two[theirs].grad = None


def device_of(model: PreTrainedModel) -> torch.device:
    """Give where a model is."""
    device: torch.device = next(model.parameters()).device
    return device


def _bare_names(model: PreTrainedModel) -> dict[str, str]:
    """Give the names of a model's body by what they are without the body's own name."""
    whole = model.base_model is model
    start = "" if whole else f"{model.base_model_prefix}."
    return {name.removeprefix(start): name for name in named_weights(model) if name.startswith(start)}
