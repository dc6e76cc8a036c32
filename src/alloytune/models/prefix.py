"""Prefix tuning (Li and Liang 2021) inside attention, registered with PEFT as one more method.

PEFT's own gives prefixes to a whole model through its wrapper, as a cache of past keys and values. Here each
attention has its own: learned keys and values stand before those of the text, in the attention function that
transformers looks up. They have no position, so that rotary models take them as others do. The layer that PEFT wraps
is the one that makes the keys; it carries the prefixes and computes what it did.

Importing this module is enough for PEFT to load such an adapter.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from aenum import extend_enum
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alloytune.models.unmergeable import UnmergeableConfig, UnmergeableLayer, UnmergeableModel

INTERFACE = "ALL_ATTENTION_FUNCTIONS"  # what an attention's forward reads where it takes any attention function
IMPLEMENTATION = "sdpa"
_SPREAD = 0.02  # standard deviation of the first values, as of transformers' own weights

if "PREFIX" not in PeftType.__members__:
    extend_enum(PeftType, "PREFIX", "PREFIX")


@dataclass
class PrefixConfig(UnmergeableConfig):
    """What the prefixes are like: `length` keys and values in every attention. Raises ValueError for none.

    `gate` multiplies them with a learned number from 0 to 1 for each attention, 1/2 at first (after Mao et al. 2022).
    """

    length: int = field(default=10, metadata={"help": "Learned keys and values in every attention."})
    gate: bool = field(default=False, metadata={"help": "Whether a learned number from 0 to 1 multiplies them."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["PREFIX"]
        if self.length < 1:
            raise ValueError(f"length must be at least 1, not {self.length}")


class PrefixLayer(UnmergeableLayer):
    """The layer that makes an attention's keys, carrying its prefixes by name: keys and values, length x width."""

    why_unmergeable = "prefixes are keys and values of their own, not weights"
    remedy = "keep them attached, drop them, or use LoRA"
    adapter_layer_names = ("prefix_key", "prefix_value", "prefix_gate")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PrefixConfig, width: int) -> None:
        super().__init__(base_layer, adapter_name)
        self.width = width
        self.prefix_key = nn.ParameterDict()
        self.prefix_value = nn.ParameterDict()
        self.prefix_gate = nn.ParameterDict()
        self.update_layer(adapter_name, config)

    def add(self, adapter_name: str, config: PrefixConfig) -> None:
        """Draw an adapter's keys and values."""
        for prefixes in (self.prefix_key, self.prefix_value):
            prefixes[adapter_name] = nn.Parameter(_SPREAD * torch.randn(config.length, self.width))
        if config.gate:
            self.prefix_gate[adapter_name] = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's own output: what it carries is for the attention function."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        return result

    def prefixes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the keys and values of the active prefixes, length x width."""
        for name in () if self.disable_adapters else self.active_adapters:
            if name in self.prefix_key:
                gate = self.prefix_gate[name].sigmoid() if name in self.prefix_gate else 1.0
                yield self.prefix_key[name] * gate, self.prefix_value[name] * gate

    def __repr__(self) -> str:
        return f"prefix.{super().__repr__()}"


class PrefixModel(UnmergeableModel):
    """PEFT's tuner for prefixes."""

    prefix = "prefix_"
    tuner_layer_cls = PrefixLayer

    def layer_for(self, target: nn.Module, parent: nn.Module, adapter_name: str, config: Any) -> PrefixLayer:
        """Give the layer that makes the keys of an attention, with first prefixes."""
        return PrefixLayer(target, adapter_name, config, _key_width(parent))


def _key_width(attention: nn.Module) -> int:
    """Give the width of one text position's keys, over all heads that have some.

    Raises ValueError for an attention that does not look its function up, which prefixes therefore never reach.
    """
    config: Any = getattr(attention, "config", None)
    if INTERFACE not in inspect.unwrap(type(attention).forward).__code__.co_names:
        raise ValueError(f"{type(attention).__name__} computes attention by itself, where prefixes do not reach")
    if getattr(config, "_attn_implementation", None) != IMPLEMENTATION:
        raise ValueError(f"{type(attention).__name__} is not set to {IMPLEMENTATION!r} attention")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = (
        getattr(attention, "head_dim", None)
        or getattr(config, "head_dim", None)
        or getattr(config, "d_kv", None)
        or config.hidden_size // config.num_attention_heads
    )
    return int(heads) * int(size)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    position_bias: Tensor | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as torch's scaled dot product does, to the prefixes of an attention as well, if it has any.

    Keys and values are batch x heads x positions x size. Every position sees every prefix.
    """
    if prefixes := _prefixes_of(module):
        length = sum(len(keys) for keys, _ in prefixes)
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if attention_mask is None and causal and query.shape[2] > 1:
            whole = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            attention_mask = whole.tril()[None, None]
        if attention_mask is not None:
            attention_mask = pad(attention_mask, (length, 0), value=attention_mask.dtype == torch.bool)
        if position_bias is not None:
            position_bias = pad(position_bias, (length, 0))
        key = torch.cat([*(_by_head(keys, key) for keys, _ in prefixes), key], dim=2)
        value = torch.cat([*(_by_head(values, value) for _, values in prefixes), value], dim=2)
        is_causal = False
    attended: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, position_bias=position_bias, is_causal=is_causal, **more
    )
    return attended


def _prefixes_of(attention: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Find the prefixes that a layer inside an attention carries, be it adapted otherwise as well."""
    found: list[tuple[Tensor, Tensor]] = []
    for layer in attention.children():
        while isinstance(layer, BaseTunerLayer):
            found += layer.prefixes() if isinstance(layer, PrefixLayer) else ()
            layer = layer.base_layer
    return found


def _by_head(prefix: Tensor, like: Tensor) -> Tensor:
    """Turn length x width into batch x heads x length x size, as `like` is."""
    batch, heads, _, size = like.shape
    return prefix.to(like.dtype).view(len(prefix), heads, size).transpose(0, 1).expand(batch, -1, -1, -1)


if PeftType["PREFIX"] not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name="prefix", config_cls=PrefixConfig, model_cls=PrefixModel)
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attend)
