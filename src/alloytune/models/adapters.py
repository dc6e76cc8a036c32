"""Adapters through PEFT: attach to a selection, fold into the base weights, take off, write in PEFT's format.

PEFT's tuners put their layers into the model, without PEFT's wrapper around it. Every adapter has its own name, config
and tuner; where several stand on one layer, the later one is outside.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alloytune.errors import InputError, first_line
from alloytune.models.methods import Method, make_site
from alloytune.models.roles import Roles
from alloytune.models.tree import canonical_name
from alloytune.models.weights import named_weights

# DoRA's lengths in PEFT's names, and as they are written: PEFT reads both, and transformers only the latter.
AS_WRITTEN = ("lora_magnitude_vector", "lora_magnitude_vector.weight")


@dataclass(frozen=True)
class Attachment:
    """What it takes to attach an adapter again: its name, its settings, the weights that it sits beside, its seed.

    `stack` allows layers that carry another adapter.
    """

    name: str
    settings: Method
    names: frozenset[str]
    seed: int
    stack: bool = False


@dataclass(frozen=True)
class Attached:
    """An adapter that sits on a model: PEFT's config and tuner for it, and its layers."""

    attachment: Attachment
    config: PeftConfig
    tuner: BaseTuner
    targets: tuple[str, ...]


class Factors(NamedTuple):
    """The factors of the change B diag(E) A that AdaLoRA makes to a layer: A [rank, in], E [rank, 1], B [out, rank]."""

    a: nn.Parameter
    e: nn.Parameter
    b: nn.Parameter


def attach(model: nn.Module, attachment: Attachment, roles: Roles, where: str, *, fresh: bool) -> Attached:
    """Attach an adapter to the layers whose weights are selected; all adapters are active afterwards.

    The head gets none: it is trained and saved whole, and PEFT loads a layer whole or with an adapter, not both.
    One that is not `fresh` gets its weights from elsewhere, and leaves those of the base alone.
    Raises InputError when there is no such layer, or when PEFT has none of this kind for it.
    """
    settings, name = attachment.settings, attachment.name
    head = roles.members["head"]
    _require_free_name(model, name, where)
    targets = settings.targets(model, roles, attachment.names - head)
    if not targets:
        raise InputError(
            where, f"the selection holds no {settings.layers} outside the head", "attach to 'attention', 'mlp' or both"
        )
    if any(f"{target}.weight" in head for target in targets):
        raise InputError(where, "the adapter stands on the head, which is trained whole", "take one that does not")
    if not attachment.stack:
        _require_bare(model, targets, where)
    torch.manual_seed(attachment.seed)
    try:
        config = settings.config(make_site(model, roles, targets, attachment.seed), fresh=fresh)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT warns where it does something else than it was told
            tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, {name: config}, name)
    except (TypeError, ValueError, UserWarning) as error:
        raise InputError(
            where, f"{settings.kind} cannot be attached ({first_line(error)})", "change it, or take another"
        ) from error
    _forget(model)
    _lay_out(model, targets)
    _fix_ranks(model, name)
    attached = Attached(attachment, config, tuner, tuple(canonical_name(target) for target in targets))
    given = settings.weights(adapter_state(attached), model, head, where)
    if given:
        set_peft_model_state_dict(_as_peft_sees(attached), given, adapter_name=name)
    return attached


def activate(model: nn.Module, names: Sequence[str]) -> None:
    """Let these adapters act, and no others."""
    for _, layer in _adapted(model):
        layer.set_adapter(list(names))


def adapted_layers(model: nn.Module) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Give for every layer that carries adapters the canonical names of its own weights, and of the adapters'."""
    names = {weight: name for name, weight in named_weights(model).items()}
    told: set[nn.Module] = set()  # several adapters on a layer nest
    for _, layer in _adapted(model):
        base = layer.get_base_layer()
        if base not in told:
            told.add(base)
            own = list(base.parameters())
            others = [weight for weight in layer.parameters() if all(weight is not each for each in own)]
            yield tuple(names[w] for w in own if w in names), tuple(names[w] for w in others if w in names)


def factors_of(model: nn.Module, attached: Attached) -> list[Factors]:
    """Give the factors of an AdaLoRA adapter, layer by layer; none of another kind."""
    name = attached.attachment.name
    layers = [layer for _, layer in _adapted(model, name) if isinstance(layer, AdaLoraLayer)]
    return [Factors(layer.lora_A[name], layer.lora_E[name], layer.lora_B[name]) for layer in layers]


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let the base act alone; unlike PEFT's own switch, this leaves alone which weights move."""
    layers = [layer for _, layer in _adapted(model)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was_off in zip(layers, before, strict=True):
            layer._disable_adapters = was_off


def merge(model: nn.Module, chosen: Sequence[Attached]) -> frozenset[str]:
    """Fold adapters into the base weights, in their own precision; give the names of the weights that changed.

    They are folded in the order given, which is to be that in which they were attached: from the inside out.
    """
    for attached in chosen:
        for _, layer in _adapted(model, attached.attachment.name):
            layer.merge(adapter_names=[attached.attachment.name])
        take_off(model, [attached])
        _lay_out(model, attached.targets)
    return base_weights(model, chosen)


def take_off(model: nn.Module, chosen: Sequence[Attached]) -> None:
    """Remove adapters; the base weights stay as they are."""
    names = {attached.attachment.name for attached in chosen}
    for path, layer in reversed(list(_adapted(model))):  # from the inside out
        for name in names.intersection(layer._all_available_adapter_names()):
            if name in layer.merged_adapters:
                layer.merged_adapters.remove(name)
            layer.delete_adapter(name)
        if not layer._all_available_adapter_names():
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base_layer)


def base_weights(model: nn.Module, chosen: Sequence[Attached]) -> frozenset[str]:
    """Give the names of the base weights that adapters stand beside: those that a merge changes."""
    targets = (target for attached in chosen for target in attached.targets)
    return (
        frozenset(f"{target}.{part}" for target in targets for part in ("weight", "bias")) & named_weights(model).keys()
    )


def adapter_state(attached: Attached, others: Sequence[Attached] = ()) -> dict[str, Tensor]:
    """Give the tensors of an adapter under the names that PEFT saves them with."""
    state: dict[str, Tensor] = get_peft_model_state_dict(
        _as_peft_sees(attached, others), adapter_name=attached.attachment.name, save_embedding_layers=False
    )
    return {canonical_name(name): value for name, value in state.items()}


def save_adapter(
    model: PreTrainedModel, all_attached: Sequence[Attached], number: int, head: frozenset[str], base: str, folder: Path
) -> None:
    """Write one of the adapters as PEFT does, with the head that was trained beside it, if any.

    PEFT asks for all that is in the modules of the head, so weights that the body has too (the embeddings, in a layer
    that words are written with) are written as well. `base` is the model that the adapter belongs on: a hub id or a
    folder.
    """
    modules = sorted({_whole_module(name, model.base_model_prefix) for name in head})
    whole = adapter_state(all_attached[number], all_attached) | {
        f"base_model.model.{path}.{name}": value
        for path in modules
        for name, value in model.get_submodule(path).state_dict().items()
    }
    # each a tensor of its own: safetensors takes no tied ones
    written = {name.replace(*AS_WRITTEN): value.contiguous().cpu().clone() for name, value in whole.items()}
    save_file(written, folder / "adapter_model.safetensors")
    config = copy(all_attached[number].config)
    config.base_model_name_or_path = base
    config.task_type = _task_type(model, has_head=bool(head))
    config.modules_to_save = modules or None
    config.inference_mode = True
    for field in ("target_modules", "exclude_modules", "feedforward_modules"):
        value = getattr(config, field, None)
        if isinstance(value, set):  # PEFT makes sets, whose order differs between processes
            setattr(config, field, sorted(value))
    if getattr(config, "init_lora_weights", True) == "pissa":
        config.init_lora_weights = True
    config.save_pretrained(str(folder))


def _task_type(model: PreTrainedModel, *, has_head: bool) -> str | None:
    """Give PEFT's word for a model's task, if it has one; for a classifier's, PEFT looks for a head."""
    words = {"CausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ConditionalGeneration": "SEQ_2_SEQ_LM"}
    if has_head:
        words |= {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}
    return next((word for ending, word in words.items() if type(model).__name__.endswith(ending)), None)


def _whole_module(name: str, prefix: str) -> str:
    """Give the module that PEFT saves a head's weight with: the head as a whole, or a single layer of the body."""
    return name.rpartition(".")[0] if name.startswith(f"{prefix}.") else name.split(".")[0]


def _as_peft_sees(attached: Attached, others: Sequence[Attached] = ()) -> nn.Module:
    """Give what PEFT reads and writes adapters of: its wrapper, from which it names everything, around the tuner."""
    whole = nn.Module()
    whole.base_model = attached.tuner
    whole.peft_config = {each.attachment.name: each.config for each in (attached, *others)}  # type: ignore[assignment]
    return whole


def _adapted(model: nn.Module, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the layers that carry adapters, or the one of a name, with their paths; the outer before the inner."""
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer) and (name is None or name in module._all_available_adapter_names()):
            yield path, module


def _require_free_name(model: nn.Module, name: str, where: str) -> None:
    """PEFT tells adapters apart by a piece of the names of weights."""
    pieces = {piece for path in named_weights(model) for piece in path.split(".")}
    if name in pieces:
        raise InputError(where, f"{name!r} is the name of a part of this model", "give the adapter another `name`")


def _require_bare(model: nn.Module, targets: Sequence[str], where: str) -> None:
    for target in targets:
        layer = model.get_submodule(target)
        if isinstance(layer, BaseTunerLayer):
            names = ", ".join(layer._all_available_adapter_names())
            raise InputError(
                where,
                f"{canonical_name(target)} carries an adapter already ({names})",
                "choose other layers with `on`, or write `stack: true`",
            )


def _lay_out(model: nn.Module, targets: Sequence[str]) -> None:
    """Keep weights in one layout: products differ in the last bit between layouts, and a resumed run has this one."""
    for name in targets:
        layer: Any = model.get_submodule(name)
        layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        layer.weight.data = layer.weight.data.contiguous()


def _fix_ranks(model: nn.Module, name: str) -> None:
    """Have AdaLoRA divide by numbers: PEFT's are parameters, which would move with the adapter and are not saved."""
    for _, layer in _adapted(model, name):
        if isinstance(layer, AdaLoraLayer):
            numbers = {each: float(rank) for each, rank in layer.ranknum.items()}
            del layer.ranknum
            layer.ranknum = numbers


def _forget(model: nn.Module) -> None:
    """Drop what a tuner notes on a model, so that the next one stands for itself."""
    for attribute in ("peft_config", "active_adapter"):
        if attribute in model.__dict__:
            delattr(model, attribute)


@contextmanager
def trained_plainly(model: nn.Module) -> Iterator[None]:
    """Have plain LoRA beside linear layers computed in fewer passes over what these give.

    PEFT copies each input into the type of its weights, which autocast turns back, and scales and adds the change in
    passes of their own: of an update of all-MiniLM-L6-v2, LoRA on all layers, a twentieth.
    """
    layers: list[Any] = [one for one in model.modules() if type(one) is LoraLinear and not one.lora_variant]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
        layer.lora_variant = dict.fromkeys(layer.lora_A, _ScaledInside())
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True
            layer.lora_variant = {}


class _ScaledInside(LoraVariant):  # type: ignore[misc]
    """Plain LoRA, scaled where it is narrow, and added within the product that widens it."""

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        narrow = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x)) * module.scaling[active_adapter]
        widen: Tensor = module.lora_B[active_adapter].weight
        return torch.addmm(result.flatten(0, -2), narrow.flatten(0, -2), widen.mT).view_as(result)
