"""How far weights have moved since a stage began, as a part of what they were."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from alloytune.models.weights import copy_weights


def relative_movement(
    model: nn.Module, start: Mapping[str, Tensor], parts: Mapping[str, str]
) -> dict[str, float | None]:
    """Give ||now - start|| / ||start|| over the weights of each part; None for a part that began at zero.

    `parts` tells the part of every weight by name; `start` holds the weights' values, in main memory.
    """
    found: dict[str, float | None] = {}
    for part in sorted(set(parts.values())):
        names = [name for name in start if parts.get(name) == part]
        now = copy_weights(model, names)
        moved = math.hypot(*(float(torch.linalg.vector_norm(now[name] - start[name])) for name in names))
        size = math.hypot(*(float(torch.linalg.vector_norm(start[name])) for name in names))
        found[part] = moved / size if size else None
    return found
