"""Prefix tuning (Li and Liang 2021) inside attention, registered with PEFT as one more method.

PEFT's own gives prefixes to a whole model through its wrapper, as a cache of past keys and values. Here each
attention has its own: learned keys and values stand before those of the text, in the attention function that
transformers looks up. They have no position, so that rotary models take them as others do. The layer that PEFT wraps
is the one that makes the keys; it carries the prefixes and computes what it did.

Importing this module is enough for PEFT to load such an adapter.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from aenum import extend_enum
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alloytune.errors import InputError

INTERFACE = "ALL_ATTENTION_FUNCTIONS"  # what an attention's forward reads where it takes any attention function
IMPLEMENTATION = "sdpa"
_SPREAD = 0.02  # standard deviation of the first values, as of transformers' own weights

if "PREFIX" not in PeftType.__members__:
    extend_enum(PeftType, "PREFIX", "PREFIX")


@dataclass
class PrefixConfig(PeftConfig):  # type: ignore[misc]
    """What the prefixes are like: `length` keys and values in every attention. Raises ValueError for none.

    `gate` multiplies them with a learned number from 0 to 1 for each attention, 1/2 at first (after Mao et al. 2022).
    """

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers that make keys: names or ends of names, or one regular expression."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers to leave out, given in the same way."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Layers to train whole and save with the adapter, such as a head."}
    )
    length: int = field(default=10, metadata={"help": "Learned keys and values in every attention."})
    gate: bool = field(default=False, metadata={"help": "Whether a learned number from 0 to 1 multiplies them."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["PREFIX"]
        if self.length < 1:
            raise ValueError(f"length must be at least 1, not {self.length}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, sets as sorted lists: PEFT makes sets of long lists, and files must not differ by run."""
        return {key: sorted(value) if isinstance(value, set) else value for key, value in super().to_dict().items()}


class PrefixLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """The layer that makes an attention's keys, carrying its prefixes by name: keys and values, length x width."""

    mergeable: ClassVar[bool] = False
    adapter_layer_names = ("prefix_key", "prefix_value", "prefix_gate")
    # What the mixin brings, told to the type checker, which would take it for a submodule.
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    active_adapters: list[str]
    disable_adapters: bool
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PrefixConfig, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = width
        self.prefix_key = nn.ParameterDict()
        self.prefix_value = nn.ParameterDict()
        self.prefix_gate = nn.ParameterDict()
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: PrefixConfig) -> None:
        """Add prefixes, or put new ones in the place of the old."""
        for prefixes in (self.prefix_key, self.prefix_value):
            prefixes[adapter_name] = nn.Parameter(_SPREAD * torch.randn(config.length, self.width))
        if config.gate:
            self.prefix_gate[adapter_name] = nn.Parameter(torch.zeros(1))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

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

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise InputError: see `mergeable`."""
        raise _cannot_merge()

    def unmerge(self) -> None:
        """Do nothing: it is never merged."""

    def __repr__(self) -> str:
        return f"prefix.{super().__repr__()}"


class PrefixModel(BaseTuner):  # type: ignore[misc]
    """PEFT's tuner for prefixes. `mergeable` is False: no weight of the model can stand for them."""

    mergeable: ClassVar[bool] = False
    prefix = "prefix_"
    tuner_layer_cls = PrefixLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        peft_config: PrefixConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, PrefixLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = PrefixLayer(target, adapter_name, peft_config, _key_width(parent))
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise _cannot_merge()


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


def _cannot_merge() -> InputError:
    return InputError(
        "merge", "prefixes are keys and values of their own, not weights", "keep them attached, drop them, or use LoRA"
    )


if PeftType["PREFIX"] not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name="prefix", config_cls=PrefixConfig, model_cls=PrefixModel)
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attend)
