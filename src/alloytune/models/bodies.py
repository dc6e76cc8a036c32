"""One body under several heads: which weights two models of the same source share, whatever their classes."""

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from alloytune.models.weights import named_weights

Replaced = list[tuple[dict[str, Any], str, Any]]  # what was put where, with what stood there before


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


def merge_bodies(model: PreTrainedModel, other: PreTrainedModel, names: Mapping[str, str]) -> Replaced:
    """Let the other model's body be this one's as well, under these names of both: parameters, modules and adapters.

    Unlike `share`, one gradient then gathers what both have; what this model ties to its body is tied to the other's.
    """
    one, two = named_weights(model), named_weights(other)
    standing_for = {one[ours]: two[theirs] for ours, theirs in names.items()}
    replaced: Replaced = []
    for module in list(model.modules()):
        for key, weight in list(module._parameters.items()):
            if weight in standing_for:
                _put(module._parameters, key, standing_for[weight], replaced)
    _merge_modules(model.base_model, other.base_model, frozenset(standing_for.values()), replaced)
    return replaced


def put_back(replaced: Replaced) -> None:
    """Give a model its own body again, which holds the other's values still: they are in the same memory."""
    for place, key, before in reversed(replaced):
        place[key] = before


def _merge_modules(
    module: nn.Module, other: nn.Module, body: frozenset[nn.Parameter | torch.Tensor], replaced: Replaced
) -> None:
    """Put the other's children where they hold the same weights, with whatever adapters they carry."""
    for name, child in list(module.named_children()):
        its = other._modules.get(name)
        if its is None or not (type(its) is type(child) or isinstance(its, BaseTunerLayer)):
            continue
        if all(weight in body for weight in child.parameters()):
            _put(module._modules, name, its, replaced)
        else:
            _merge_modules(child, its, body, replaced)


def _put(place: dict[str, Any], key: str, value: Any, replaced: Replaced) -> None:
    replaced.append((place, key, place[key]))
    place[key] = value


def device_of(model: PreTrainedModel) -> torch.device:
    """Give where a model is."""
    device: torch.device = next(model.parameters()).device
    return device


def _bare_names(model: PreTrainedModel) -> dict[str, str]:
    """Give the names of a model's body by what they are without the body's own name."""
    whole = model.base_model is model
    start = "" if whole else f"{model.base_model_prefix}."
    return {name.removeprefix(start): name for name in named_weights(model) if name.startswith(start)}
