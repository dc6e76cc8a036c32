"""From parameters to the linear layers that adapters go on."""

from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from alloytune.models.roles import Roles, canonical_name, linear_features


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
        if linear_features(layer) is not None and f"{canonical}.weight" in wanted:
            targets.setdefault(canonical, name)
    return list(targets.values())


def output_targets(model: nn.Module, roles: Roles, names: Iterable[str]) -> list[str]:
    """Return those of `linear_targets` that write back into the stream between layers, where bottlenecks go."""
    outputs = roles.members.get("attention.output", frozenset()) | roles.members.get("mlp.down", frozenset())
    return linear_targets(model, outputs.intersection(names))
