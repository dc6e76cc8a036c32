"""Routing (MoLF, 2605.07111): in every update a layer moves its full weights or its adapter, whichever scores better.

The score of a side is the mean over its elements of rate * m^2 / (sqrt(v) + eps), with Adam's averages m of the
gradient and v of its square, both corrected for their start: the descent that the step promises. It is multiplied with
the side's weight, a prior. Both sides' averages are kept up in every update.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alloytune.train.joint import Blend
from alloytune.train.optimizers import Optimizer, ParamGroup

COUNTS = "routed"  # entry of the course's memory: how often full weights won, and how often adapters did

_Homes = Mapping[nn.Parameter, tuple[ParamGroup, Mapping[str, Any]]]  # group and optimizer's memory of each weight


@dataclass(frozen=True)
class Site:
    """A layer whose own weights and whose adapter's move, by name."""

    full: tuple[str, ...]
    adapter: tuple[str, ...]


class Router:
    """Takes back what a step did to the side of each site that scores worse; to the adapter where both score alike.

    What is at no site moves always. Holds a second copy of the sites' weights. The optimizer is AdamW.
    """

    def __init__(self, sites: Sequence[Site], blend: Blend, weights: Mapping[str, nn.Parameter]) -> None:
        self._sites = sites
        self._blend = blend
        names = [name for site in sites for name in (*site.full, *site.adapter)]
        self._weights = {name: weights[name] for name in names}
        self._before = {name: weights[name].detach().clone() for name in names}
        blend.memory.setdefault(COUNTS, torch.zeros(2, dtype=torch.int64))

    @contextmanager
    @torch.no_grad()
    def around(self, optimizer: Optimizer) -> Iterator[None]:
        """Route one step."""
        torch._foreach_copy_(list(self._before.values()), list(self._weights.values()))
        yield
        homes = _homes(optimizer)
        leads = [self._score(site.full, homes) - self._score(site.adapter, homes) for site in self._sites]
        full_wins = [lead >= 0 for lead in torch.stack(leads).tolist()]
        for site, wins in zip(self._sites, full_wins, strict=True):
            for name in site.adapter if wins else site.full:
                self._weights[name].copy_(self._before[name])
        num_full = sum(full_wins)
        self._blend.memory[COUNTS] += torch.tensor([num_full, len(full_wins) - num_full])

    def _score(self, names: Sequence[str], homes: _Homes) -> Tensor:
        """Give prior * rate * mean(m^2 / (sqrt(v) + eps)); weights that have never stepped count 0."""
        sums = [self._sum(name, homes) for name in names]
        num_elements = sum(self._weights[name].numel() for name in names)
        return torch.stack(sums).sum() / num_elements

    def _sum(self, name: str, homes: _Homes) -> Tensor:
        weight = self._weights[name]
        group, memory = homes[weight]
        if weight.grad is None or not memory:
            return weight.new_zeros(())
        beta1, beta2 = group["betas"]
        m, v, step = memory["exp_avg"], memory["exp_avg_sq"], float(memory["step"])
        first, second = 1.0 - beta1**step, 1.0 - beta2**step
        spread = v.sqrt().mul_(second**-0.5).add_(group["eps"])
        descent = (m / spread).flatten() @ m.flatten() / first**2
        prior = self._blend.factor(self._blend.parts[name])
        scored: Tensor = descent * (prior * float(group["lr"]))
        return scored


def _homes(optimizer: Optimizer) -> _Homes:
    return {weight: (group, memories.get(weight, {})) for weight, group, memories in optimizer.homes()}
