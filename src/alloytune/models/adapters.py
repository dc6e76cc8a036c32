"""Adapters through PEFT: attach to a selection, fold into the base weights, take off, write in PEFT's format."""

from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, LoraModel, PeftConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alloytune.errors import InputError
from alloytune.models.bottleneck import BottleneckConfig, BottleneckModel
from alloytune.models.roles import Roles
from alloytune.models.targets import linear_targets, output_targets
from alloytune.models.weights import named_weights

ADAPTER = "default"  # PEFT loads an adapter under this name unless told otherwise


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank factors of a rank, scaled by alpha / rank."""

    rank: int
    alpha: float
    dropout: float
    kind = "lora"
    mergeable = True


@dataclass(frozen=True)
class BottleneckSettings:
    """Two small layers, `reduction` times narrower than the layer that they serve."""

    reduction: int
    activation: str
    placement: str
    dropout: float
    kind = "bottleneck"
    mergeable = False


AdapterSettings = LoraSettings | BottleneckSettings


@dataclass(frozen=True)
class Attached:
    """An adapter that sits on a model: PEFT's config, and PEFT's tuner that can merge it or take it off."""

    settings: AdapterSettings
    config: PeftConfig
    tuner: LoraModel | BottleneckModel
    targets: tuple[str, ...]


def attach(
    model: nn.Module, settings: AdapterSettings, names: frozenset[str], roles: Roles, seed: int, where: str
) -> Attached:
    """Attach an adapter to the linear layers whose weights are among `names`; outputs do not change by it.

    Raises InputError when there is no such layer.
    """
    targets = output_targets(model, roles, names) if settings.kind == "bottleneck" else linear_targets(model, names)
    if not targets:
        raise InputError(
            where,
            f"the selection holds no {'output projection' if settings.kind == 'bottleneck' else 'linear layer'} "
            "outside the head",
            "attach to 'attention', 'mlp' or both",
        )
    config = _config(settings, targets, isinstance(model.get_submodule(targets[0]), Conv1D), where)
    torch.manual_seed(seed)
    tuner_class = LoraModel if settings.kind == "lora" else BottleneckModel
    tuner = tuner_class(model, {ADAPTER: config}, ADAPTER)
    return Attached(settings, config, tuner, tuple(targets))


def merge(model: nn.Module, attached: Attached) -> frozenset[str]:
    """Fold an adapter into the base weights, in their own precision; give the names of the weights that changed."""
    attached.tuner.merge_and_unload()
    _forget(model)
    weights = named_weights(model)
    return frozenset(
        name for target in attached.targets for name in (f"{target}.weight", f"{target}.bias") if name in weights
    )


def take_off(model: nn.Module, attached: Attached) -> None:
    """Remove an adapter; the base weights are as they were."""
    attached.tuner.unload()
    _forget(model)


def save_adapter(model: PreTrainedModel, attached: Attached, head: frozenset[str], base: str, folder: Path) -> None:
    """Write an adapter as PEFT does, with the head that was trained beside it.

    `base` is the model that the adapter belongs on: a hub id or a folder.
    """
    weights = named_weights(model)
    state = {
        f"base_model.model.{name}": value
        for name, value in get_peft_model_state_dict(model, adapter_name=ADAPTER).items()
    }
    state |= {f"base_model.model.{name}": weights[name].detach() for name in head}
    save_file({name: value.contiguous().cpu() for name, value in state.items()}, folder / "adapter_model.safetensors")
    config = copy(attached.config)
    config.base_model_name_or_path = base
    config.task_type = "SEQ_CLS"
    config.modules_to_save = sorted({_whole_module(name, model.base_model_prefix) for name in head}) or None
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # PEFT keeps a set, whose order differs between processes
    config.save_pretrained(str(folder))


def _whole_module(name: str, prefix: str) -> str:
    """Give the module that PEFT saves a head's weight with: the head as a whole, or a single layer of the body."""
    return name.rpartition(".")[0] if name.startswith(f"{prefix}.") else name.split(".")[0]


def _config(settings: AdapterSettings, targets: list[str], transposed: bool, where: str) -> PeftConfig:
    if isinstance(settings, LoraSettings):
        return LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets,
            fan_in_fan_out=transposed,  # GPT-2 keeps its weights the other way round
        )
    try:
        return BottleneckConfig(
            reduction=settings.reduction,
            activation=settings.activation,
            placement=settings.placement,
            dropout=settings.dropout,
            target_modules=targets,
        )
    except ValueError as error:
        raise InputError(where, str(error), "choose one that transformers knows") from error


def _forget(model: nn.Module) -> None:
    """Drop what PEFT leaves on a model that has no adapter any more."""
    for attribute in ("peft_config", "active_adapter"):
        if attribute in model.__dict__:
            delattr(model, attribute)
