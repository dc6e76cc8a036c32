"""From parameters to the linear layers that adapters go on."""

from collections.abc import Iterable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alloytune.models.roles import Roles
from alloytune.models.tree import canonical_name, linear_features


def linear_targets(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the linear layers whose weight is among `names` (canonical), as PEFT's `target_modules` take them.

    They come in the model's order, under the names of `model.named_modules()`; a layer that carries an adapter is named
    by its wrapper. An output layer tied to the embeddings is not among them under the embeddings' name: an
    adapter on one of two tied layers comes out wrong when it is merged.
    """
    wanted = set(names)
    targets: dict[str, str] = {}  # canonical -> the outermost module of that name
    for name, module in model.named_modules():
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        canonical = canonical_name(name)
        if f"{canonical}.weight" in wanted and _is_linear(layer):
            targets.setdefault(canonical, name)
    return list(targets.values())


def output_targets(model: nn.Module, roles: Roles, names: Iterable[str]) -> list[str]:
    """Return those of `linear_targets` that write back into the stream between layers, where bottlenecks go."""
    outputs = roles.members.get("attention.output", frozenset()) | roles.members.get("mlp.down", frozenset())
    return linear_targets(model, outputs.intersection(names))


def _is_linear(layer: nn.Module) -> bool:
    """Tell whether a layer does what an adapter beside it takes for granted: one tensor in, one out.

    Some classes derive from nn.Linear and return more (the routers of PhiMoE) or have no more than its sizes (I-BERT).
    """
    features = linear_features(layer)
    if features is None or isinstance(layer, Conv1D) or type(layer).forward is nn.Linear.forward:
        return features is not None
    weight = layer.weight
    assert isinstance(weight, Tensor)
    try:
        with torch.no_grad():
            output = layer(torch.zeros(1, features[0], dtype=weight.dtype, device=weight.device))
    except (RuntimeError, TypeError, ValueError):
        return False
    return isinstance(output, Tensor) and output.shape == (1, features[1])
