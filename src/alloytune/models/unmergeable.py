"""What PEFT asks of a further method, for adapters that no weight of the model can stand for."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from alloytune.errors import InputError


@dataclass
class UnmergeableConfig(PeftConfig):  # type: ignore[misc]
    """Where adapters go, and what is trained and saved beside them."""

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers to adapt: names or ends of names, or one regular expression."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers to leave out, given in the same way."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Layers to train whole and save with the adapter, such as a head."}
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, sets as sorted lists: PEFT makes sets of long lists, and files must not differ by run."""
        return {key: sorted(value) if isinstance(value, set) else value for key, value in super().to_dict().items()}


class UnmergeableLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A layer of the model with adapters by name."""

    why_unmergeable: ClassVar[str]
    remedy: ClassVar[str] = "keep it attached, drop it, or use a LoRA adapter"
    # What the mixin brings, told to the type checker, which would take it for a submodule.
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    active_adapters: list[str]
    disable_adapters: bool
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name

    @abstractmethod
    def add(self, adapter_name: str, config: Any) -> None:
        """Make the modules and weights of an adapter, in the place of those that had its name."""

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter, or put a new one in the place of the old."""
        self.add(adapter_name, config)
        self.train(self.base_layer.training)  # new modules start in training mode, even inside a model that is not
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @abstractmethod
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output."""

    @classmethod
    def refusal(cls) -> InputError:
        """Give the error of who wants to merge it."""
        return InputError("merge", cls.why_unmergeable, cls.remedy)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise InputError."""
        raise self.refusal()

    def unmerge(self) -> None:
        """Do nothing: it is never merged."""


class UnmergeableModel(BaseTuner):  # type: ignore[misc]
    """PEFT's tuner for such adapters."""

    tuner_layer_cls: ClassVar[type[UnmergeableLayer]]
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    @abstractmethod
    def layer_for(self, target: nn.Module, parent: nn.Module, adapter_name: str, config: Any) -> UnmergeableLayer:
        """Give the layer that takes the place of `target` in `parent`."""

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.layer_for(target, parent, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise self.tuner_layer_cls.refusal()
