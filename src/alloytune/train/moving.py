"""Which weights move and how fast: a value that the loop is given."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

OptimizerState = dict[str, Tensor]


@dataclass(frozen=True)
class Group:
    """Weights, by name, that move at one rate with one decay."""

    names: tuple[str, ...]
    rate: float
    weight_decay: float


@dataclass(frozen=True)
class Moving:
    """Everything that moves in a stage."""

    groups: tuple[Group, ...]

    @property
    def names(self) -> frozenset[str]:
        """Give the names of all weights that move."""
        return frozenset(name for group in self.groups for name in group.names)

    @property
    def rates(self) -> list[float]:
        """Give the rates that there are, largest first."""
        return sorted({group.rate for group in self.groups}, reverse=True)

    def slower(self, factor: float) -> "Moving":
        """Give the same weights at rates times `factor`."""
        return Moving(tuple(Group(g.names, g.rate * factor, g.weight_decay) for g in self.groups))


def make_optimizer(moving: Moving, weights: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """Make AdamW over the moving weights; each group remembers its full rate as `peak`."""
    groups = [
        {
            "params": [weights[name] for name in group.names],
            "lr": group.rate,
            "peak": group.rate,
            "weight_decay": group.weight_decay,
        }
        for group in moving.groups
    ]
    return torch.optim.AdamW(groups, fused=True)


def optimizer_state(optimizer: torch.optim.AdamW, weights: Mapping[str, nn.Parameter]) -> OptimizerState:
    """Give the optimizer's memory as tensors named `WEIGHT|ENTRY`, such as `classifier.bias|exp_avg`."""
    return {
        f"{name}|{entry}": value
        for name, weight in weights.items()
        if weight in optimizer.state
        for entry, value in optimizer.state[weight].items()
    }


def put_optimizer_state(
    optimizer: torch.optim.AdamW, weights: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Put the optimizer's memory back."""
    for key, value in state.items():
        name, entry = key.split("|")
        weight = weights[name]
        optimizer.state[weight][entry] = value.to(weight.device, copy=True)
