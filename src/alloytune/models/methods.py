"""The kinds of adapters: what each is told, which layers it goes on, and PEFT's config for it.

A further method of PEFT is one more class here and its words in the recipe.
"""

from dataclasses import dataclass

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, OFTConfig, PeftConfig, ShiraConfig, VeraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alloytune.models.bottleneck import BottleneckConfig
from alloytune.models.prefix import PrefixConfig
from alloytune.models.roles import Roles
from alloytune.models.targets import linear_targets, output_targets
from alloytune.models.tree import canonical_name
from alloytune.models.weights import Weights

_WARM, _CUT = 0.1, 0.5  # shares of a stage between which AdaLoRA's ranks fall


@dataclass(frozen=True)
class Site:
    """The layers that an adapter goes on, by the names that PEFT's `target_modules` take, and the seed it draws from.

    `inner` are those that read the inside of a feed-forward block; `transposed` tells that weights are (in, out), as
    GPT-2 keeps them.
    """

    targets: list[str]
    inner: list[str]
    transposed: bool
    seed: int


class Method:
    """What holds for a kind unless it says otherwise. `fresh` tells an adapter that begins from one that is put back.

    `moves_base` tells that its start takes something out of the base weights. `plus` is how many times faster its
    second factor moves than the first (LoRA+). `reach` is how far a step at some rate moves a layer, beside what the
    kind's starting rate was measured with.
    """

    kind: str
    layers: str = "linear layer"
    mergeable: bool = True
    moves_base: bool = False
    plus: float | None = None
    reach: float = 1.0

    def targets(self, model: nn.Module, roles: Roles, names: frozenset[str]) -> list[str]:
        """Give the layers among the selected weights that it can go on."""
        return linear_targets(model, names)

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Make PEFT's config; raises ValueError for a value that cannot be."""
        raise NotImplementedError

    def weights(self, expected: dict[str, Tensor], model: nn.Module, head: frozenset[str], where: str) -> Weights:
        """Give the weights to begin with, under PEFT's names, where they are not drawn by PEFT itself."""
        return {}

    def budget(self, share: float) -> float | None:
        """Give the average rank that its layers may have with `share` of its stage done; None where none is cut."""
        return None


@dataclass(frozen=True)
class LoraSettings(Method):
    """Low-rank factors of a rank (Hu et al. 2021), scaled by alpha / rank; alpha is twice the rank where None.

    rslora scales by alpha / sqrt(rank) (Kalajdzievski 2023), dora learns the length of each column beside its
    direction (Liu et al. 2024), pissa starts from the largest singular values (Meng et al. 2024).
    """

    rank: int
    alpha: float | None = None
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    pissa: bool = False
    plus: float | None = None
    kind = "lora"

    @property
    def reach(self) -> float:  # type: ignore[override]
        """Every direction adds to the step: the scale times the rank, beside rank 8 with alpha 16."""
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        return alpha * (self.rank**0.5 if self.rslora else 1.0) / 16

    @property
    def moves_base(self) -> bool:  # type: ignore[override]
        """PiSSA leaves the base what its factors do not hold."""
        return self.pissa

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Make PEFT's config; PiSSA is a way to begin, after which it is plain LoRA on what the base became."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights="pissa" if self.pissa and fresh else True,
            target_modules=site.targets,
            fan_in_fan_out=site.transposed,
        )


@dataclass(frozen=True)
class AdaloraSettings(Method):
    """Low-rank factors B diag(E) A, of rank `start` in every layer at first and `rank` on average in the end.

    AdaLoRA (Zhang et al. 2023). The change is scaled by alpha / start; alpha is twice the start where None.
    `orthogonal` weighs the mean over the factors of ||A A' - I|| and ||B' B - I||.
    """

    rank: int
    start: int
    alpha: float | None = None
    dropout: float = 0.0
    orthogonal: float = 0.5
    kind = "adalora"

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Make PEFT's config; PEFT's own schedule in updates is not used."""
        return AdaLoraConfig(
            init_r=self.start,
            target_r=self.rank,
            lora_alpha=2 * self.start if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            orth_reg_weight=self.orthogonal,
            total_step=1,
            target_modules=site.targets,
            fan_in_fan_out=site.transposed,
        )

    def budget(self, share: float) -> float:
        """Give the start for a tenth of the stage, then a cubic fall, and from its middle on the rank."""
        left = min(max((_CUT - share) / (_CUT - _WARM), 0.0), 1.0)
        return self.rank + (self.start - self.rank) * left**3


@dataclass(frozen=True)
class VeraSettings(Method):
    """Two trained vectors around random matrices that all layers share (Kopiczko et al. 2024)."""

    rank: int
    dropout: float = 0.0
    kind = "vera"

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Make PEFT's config; the random matrices are drawn from PEFT's own fixed key and saved with the adapter."""
        return VeraConfig(
            r=self.rank, vera_dropout=self.dropout, target_modules=site.targets, fan_in_fan_out=site.transposed
        )


@dataclass(frozen=True)
class Ia3Settings(Method):
    """One trained factor per output of a layer, or per input behind a feed-forward's inside (Liu et al. 2022)."""

    kind = "ia3"

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Make PEFT's config."""
        return IA3Config(target_modules=site.targets, feedforward_modules=site.inner, fan_in_fan_out=site.transposed)


@dataclass(frozen=True)
class OftSettings(Method):
    """Rotations of a layer's inputs, in blocks of a size (Qiu et al. 2023)."""

    block: int
    kind = "oft"

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Make PEFT's config."""
        return OFTConfig(oft_block_size=self.block, target_modules=site.targets, fan_in_fan_out=site.transposed)


@dataclass(frozen=True)
class ShiraSettings(Method):
    """Random elements of the weights, as many as LoRA of the rank would train (Bhardwaj et al. 2024)."""

    rank: int
    kind = "shira"

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Make PEFT's config."""
        torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns until it is told either way
        return ShiraConfig(
            r=self.rank, random_seed=site.seed, target_modules=site.targets, fan_in_fan_out=site.transposed
        )


@dataclass(frozen=True)
class BottleneckSettings(Method):
    """Two small layers and a nonlinearity, `reduction` times narrower than the layer that they serve."""

    reduction: int
    activation: str
    placement: str
    dropout: float
    gate: bool = False
    kind = "bottleneck"
    layers = "output projection"
    mergeable = False

    @property
    def reach(self) -> float:  # type: ignore[override]
        """Every unit of the narrow layer adds to the step: as many as there are, beside reduction 8."""
        return 8 / self.reduction

    def targets(self, model: nn.Module, roles: Roles, names: frozenset[str]) -> list[str]:
        """Give the projections that lead out of the selected blocks."""
        return output_targets(model, roles, names)

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Make the config."""
        return BottleneckConfig(
            reduction=self.reduction,
            activation=self.activation,
            placement=self.placement,
            dropout=self.dropout,
            gate=self.gate,
            target_modules=site.targets,
        )


@dataclass(frozen=True)
class PrefixSettings(Method):
    """Learned keys and values before those of the text, `length` in every attention (Li and Liang 2021)."""

    length: int
    gate: bool = False
    kind = "prefix"
    layers = "key projection"
    mergeable = False

    def targets(self, model: nn.Module, roles: Roles, names: frozenset[str]) -> list[str]:
        """Give the layers that make the keys of the selected attentions."""
        return linear_targets(model, names & roles.members.get("attention.key", frozenset()))

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Make the config."""
        return PrefixConfig(length=self.length, gate=self.gate, target_modules=site.targets)


METHODS: dict[str, type[Method]] = {
    method.kind: method  # the recipe's word for it
    for method in (
        LoraSettings,
        AdaloraSettings,
        VeraSettings,
        Ia3Settings,
        OftSettings,
        ShiraSettings,
        BottleneckSettings,
        PrefixSettings,
    )
}


def make_site(model: nn.Module, roles: Roles, targets: list[str], seed: int) -> Site:
    """Describe the layers of these names."""
    downs = {name.removesuffix(".weight") for name in roles.members.get("mlp.down", ())}
    first = model.get_submodule(targets[0])
    layer = first.get_base_layer() if isinstance(first, BaseTunerLayer) else first
    inner = [target for target in targets if canonical_name(target) in downs]
    return Site(targets, inner, isinstance(layer, Conv1D), seed)
