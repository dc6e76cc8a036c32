"""Bottleneck adapters (Houlsby et al. 2019; parallel form He et al. 2022), registered with PEFT as one more method.

Importing this module is enough for PEFT to load such an adapter; saving, switching and unloading are PEFT's own.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from aenum import extend_enum
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method
from torch import Tensor, nn
from transformers.activations import ACT2FN

from alloytune.models.tree import linear_features
from alloytune.models.unmergeable import UnmergeableConfig, UnmergeableLayer, UnmergeableModel

PLACEMENTS = ("sequential", "parallel")

if "BOTTLENECK" not in PeftType.__members__:
    extend_enum(PeftType, "BOTTLENECK", "BOTTLENECK")


@dataclass
class BottleneckConfig(UnmergeableConfig):
    """What a bottleneck adapter is like. Raises ValueError for a value that cannot be.

    The up-projection starts at zero, so that attaching an adapter changes no output.
    """

    reduction: int = field(default=16, metadata={"help": "Width of the layer divided by the width of the bottleneck."})
    activation: str = field(default="relu", metadata={"help": "Activation between down and up, by transformers' name."})
    placement: str = field(
        default="sequential",
        metadata={"help": "'sequential' reads the output of the layer, 'parallel' its input; both add to the output."},
    )
    dropout: float = field(
        default=0.0, metadata={"help": "Share of the bottleneck's input that is dropped in training."}
    )
    gate: bool = field(
        default=False, metadata={"help": "Whether a learned number from 0 to 1 multiplies what it adds."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BOTTLENECK"]
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, not {self.reduction}")
        if self.activation not in ACT2FN:
            raise ValueError(f"activation {self.activation!r} is unknown; one of {', '.join(sorted(ACT2FN))}")
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, not {self.placement!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")


class BottleneckLayer(UnmergeableLayer):
    """A linear layer with bottleneck adapters by name.

    sequential: h + up(act(down(h))) with h = W x; parallel: W x + up(act(down(x))). Active adapters apply one after
    the other. A gate multiplies what is added with a learned number from 0 to 1, 1/2 at first (after Mao et al. 2022,
    whose gates look at the input). Computed in the adapter's dtype and returned in the layer's.
    """

    why_unmergeable = "a bottleneck adapter is not linear and cannot be folded into the weights of a layer"
    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_activation", "bottleneck_gate")
    other_param_names = ("bottleneck_dropout", "placement")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__(base_layer, adapter_name)
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_activation = nn.ModuleDict()
        self.bottleneck_gate = nn.ParameterDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.placement: dict[str, str] = {}
        features = linear_features(self.get_base_layer())
        if features is None:
            kind = type(self.get_base_layer()).__name__
            raise ValueError(f"a bottleneck adapter goes on a linear layer, not on {kind}; choose other target_modules")
        self.in_features, self.out_features = features
        self.update_layer(adapter_name, config)

    def add(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Make an adapter's projections, activation, dropout and gate."""
        width = max(1, self.out_features // config.reduction)
        source = self.in_features if config.placement == "parallel" else self.out_features
        up = nn.Linear(width, self.out_features)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name] = nn.Linear(source, width)
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_activation[adapter_name] = ACT2FN[config.activation]
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        if config.gate:
            self.bottleneck_gate[adapter_name] = nn.Parameter(torch.zeros(1))
        self.placement[adapter_name] = config.placement

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output with the active adapters added."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                delta = self._delta(name, x if self.placement[name] == "parallel" else result)
                result = result + delta.to(result.dtype)
        return result

    def _delta(self, name: str, source: Tensor) -> Tensor:
        down = self.bottleneck_down[name]
        assert isinstance(down, nn.Linear)
        hidden = down(self.bottleneck_dropout[name](source.to(down.weight.dtype)))
        delta: Tensor = self.bottleneck_up[name](self.bottleneck_activation[name](hidden))
        return delta * self.bottleneck_gate[name].sigmoid() if name in self.bottleneck_gate else delta

    def __repr__(self) -> str:
        return f"bottleneck.{super().__repr__()}"


class BottleneckModel(UnmergeableModel):
    """PEFT's tuner for bottleneck adapters."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def layer_for(self, target: nn.Module, parent: nn.Module, adapter_name: str, config: Any) -> BottleneckLayer:
        """Give the linear layer with a first adapter."""
        return BottleneckLayer(target, adapter_name, config)


if PeftType["BOTTLENECK"] not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name="bottleneck", config_cls=BottleneckConfig, model_cls=BottleneckModel)
