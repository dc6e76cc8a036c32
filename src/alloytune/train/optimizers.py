"""Optimizers by name, behind one face: torch's own, and those that torch lacks, from the libraries that have them.

AdamW (Loshchilov and Hutter 2019), SGD, Adafactor (Shazeer and Stern 2018) and Muon (Jordan et al. 2024) are torch's;
Lion (Chen et al. 2023), GaLore (Zhao et al. 2024) and Schedule-Free (Defazio et al. 2024) come from pytorch_optimizer,
APOLLO (Zhu et al. 2024) from apollo-torch, 8-bit memory (Dettmers et al. 2022) from bitsandbytes.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from alloytune.errors import InputError
from alloytune.train.row_adamw import RowAdamW

ParamGroup = dict[str, Any]
Memories = MutableMapping[torch.Tensor, Any]


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer's name and what is set in it."""

    kind: str = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)

    def moves(self, role: str, shape: Sequence[int]) -> bool:
        """Tell whether it moves a weight itself; Muon, GaLore and APOLLO leave all but hidden matrices to AdamW."""
        if self.kind not in ("muon", "galore", "apollo"):
            return True
        return len(shape) == 2 and role not in ("embeddings", "head") and min(shape) > self.options.get("rank", 0)


class Optimizer:
    """Some torch optimizers, each over its own weights, as one.

    A weight without a gradient is left alone, and the updates before its first one do not count for it. Weights with
    an anchor (`anchors` in their group, by weight) are drawn to it by `rate * pull` of the way before each step.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)

    @property
    def tables(self) -> frozenset[nn.Parameter]:
        """Give the weights that are updated by rows, whose gradients may be sparse."""
        parts = [part for part in self.parts if isinstance(part, RowAdamW)]
        return frozenset(weight for part in parts for group in part.param_groups for weight in group["params"])

    @property
    def param_groups(self) -> list[ParamGroup]:
        """Give the groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def homes(self) -> Iterator[tuple[nn.Parameter, ParamGroup, Memories]]:
        """Give every weight with its group and with the memories, by weight, among which its own is or will be."""
        for part in self.parts:
            for group in part.param_groups:
                for weight in group["params"]:
                    yield weight, group, part.state

    def step(self) -> None:
        """Update the weights from their gradients, and note on each that it has moved, which fused AdamW does not."""
        for part in self.parts:
            moving = [w for group in part.param_groups for w in group["params"] if w.grad is not None]
            if moving:
                for group in part.param_groups:
                    _pull(group)
                part.step()
                for weight in moving:
                    torch.autograd.graph.increment_version(weight)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad()

    def forget(self, weights: Set[nn.Parameter]) -> None:
        """Drop the memory of weights, so that their next update is a first one."""
        for part in self.parts:
            for weight in weights:
                memory = part.state.pop(weight, {})
                if "seed" in memory:  # of APOLLO's projections, given when the optimizer is made and never again
                    part.state[weight] = {"seed": memory["seed"]}
            for group in part.param_groups:
                if weights >= set(group["params"]):
                    group.pop("step", None)  # pytorch_optimizer counts in the group, and each weight has its own there

    def train(self) -> None:
        """Put the weights in place that gradients are taken at; only schedule-free ones differ."""
        self._switch("train")

    def eval(self) -> None:
        """Put the weights in place that are scored and kept; only schedule-free ones differ."""
        self._switch("eval")

    @torch.no_grad()
    def _switch(self, mode: str) -> None:
        for part in self.parts:
            if switch := getattr(part, mode, None):
                switch()


@torch.no_grad()
def _pull(group: ParamGroup) -> None:
    for weight in group["params"] if "anchors" in group else ():
        if weight.grad is not None:
            weight.lerp_(group["anchors"][weight], group["lr"] * group["pull"])


def make_parts(settings: OptimizerSettings, groups: list[ParamGroup]) -> list[torch.optim.Optimizer]:
    """Make what an optimizer consists of; weights that it does not move itself get AdamW.

    AdamW updates the weights of groups with `by_rows` row by row.
    """
    own, others = (_choose(settings, groups, is_own) for is_own in (True, False))
    return [*(_MAKERS[settings.kind](own, **settings.options) if own else ()), *(_adamw(others) if others else ())]


def _choose(settings: OptimizerSettings, groups: list[ParamGroup], is_own: bool) -> list[ParamGroup]:
    """Give the groups with the weights that an optimizer moves itself, or with the others."""
    chosen = [[w for w in group["params"] if settings.moves(group["role"], w.shape) is is_own] for group in groups]
    return [{**group, "params": params} for group, params in zip(groups, chosen, strict=True) if params]


def require_installed(settings: OptimizerSettings, where: str) -> None:
    """Raise InputError when the library that an optimizer comes from is not installed."""
    needed = "bitsandbytes" if settings.options.get("bits") == 8 else _EXTRA.get(settings.kind)
    if needed and not find_spec(needed):
        raise InputError(
            where, f"it needs {needed}, which is not installed", 'run: pip install "alloytune[optimizers]"'
        )


def _adamw(groups: list[ParamGroup], beta1: float = 0.9, beta2: float = 0.999, bits: int = 32) -> list[Any]:
    if bits == 8:
        return [import_module("bitsandbytes").optim.AdamW8bit(groups, betas=(beta1, beta2))]
    tables = [group for group in groups if group.get("by_rows")]
    others = [group for group in groups if not group.get("by_rows")]
    made: list[Any] = [torch.optim.AdamW(others, betas=(beta1, beta2), fused=True)] if others else []
    return [*made, RowAdamW(tables, (beta1, beta2))] if tables else made


def _sgd(groups: list[ParamGroup], momentum: float, nesterov: bool) -> list[Any]:
    return [torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov)]


def _adafactor(groups: list[ParamGroup], beta2_decay: float) -> list[Any]:
    return [torch.optim.Adafactor(groups, beta2_decay=beta2_decay)]


def _lion(groups: list[ParamGroup], beta1: float, beta2: float, bits: int) -> list[Any]:
    if bits == 8:
        return [import_module("bitsandbytes").optim.Lion8bit(groups, betas=(beta1, beta2))]
    return [import_module("pytorch_optimizer").Lion(groups, betas=(beta1, beta2))]


def _muon(groups: list[ParamGroup], momentum: float, nesterov: bool) -> list[Any]:
    """Make Muon with updates as large as AdamW's (Liu et al. 2025), as one rate serves both."""
    return [torch.optim.Muon(groups, momentum=momentum, nesterov=nesterov, adjust_lr_fn="match_rms_adamw")]


def _galore(groups: list[ParamGroup], rank: int, every: int, scale: float) -> list[Any]:
    library = import_module("pytorch_optimizer")
    options = {"rank": rank, "update_proj_gap": every, "scale": scale, "projection_type": "std"}
    projector = import_module("pytorch_optimizer.optimizer.utils.galore").GaLoreProjector
    return [
        library.GaLore([{**group, **options, "projector": partial(projector, **options)}]) for group in _each(groups)
    ]


def _apollo(groups: list[ParamGroup], rank: int, every: int, scale: float, per: str) -> list[Any]:
    """Make APOLLO as its authors do: pytorch_optimizer's scales the projected gradient instead of the whole one."""
    options = {"rank": rank, "update_proj_gap": every, "scale": scale, "proj_type": "std"}
    projector = import_module("apollo_torch.random_projector").GradientProjector
    own = {**options, "proj": "random", "scale_type": per, "projector": partial(projector, **options)}
    return [import_module("apollo_torch").APOLLOAdamW([{**group, **own} for group in groups])]


def _schedule_free(groups: list[ParamGroup], beta1: float, beta2: float) -> list[Any]:
    made = import_module("pytorch_optimizer").ScheduleFreeAdamW
    return [made([group], betas=(beta1, beta2)) for group in _each(groups)]


def _each(groups: list[ParamGroup]) -> Iterator[ParamGroup]:
    """Give every weight a group of its own: pytorch_optimizer counts updates by group, not by weight."""
    for group in groups:
        for weight in group["params"]:
            yield {**group, "params": [weight]}


_MAKERS: dict[str, Callable[..., list[Any]]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "galore": _galore,
    "apollo": _apollo,
    "schedule_free": _schedule_free,
}
_EXTRA = {"apollo": "apollo_torch"}
