"""What an optimizer remembers of every weight, as tensors that a checkpoint can hold."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alloytune.train.optimizers import Optimizer, ParamGroup
from alloytune.train.row_adamw import by_rows, whole

OptimizerState = dict[str, Tensor]

_PYTHON = {bool: torch.bool, int: torch.int64, float: torch.float64}  # types that hold Python's numbers exactly
_COUNTED = ("step", "weight_sum", "lr_max", "train_mode")  # kept in the group; where it matters, of a single weight


def optimizer_state(optimizer: Optimizer, weights: Mapping[str, nn.Parameter]) -> OptimizerState:
    """Give the optimizer's memory as tensors named `WEIGHT|ENTRY`, such as `classifier.bias|exp_avg`.

    An entry of a projector is `projector.ENTRY`, one that the group holds `group.ENTRY`. A third part of the name says
    how the tensor stands for what it is: `number`, without dimensions, or `transposed`.
    """
    names = {weight: name for name, weight in weights.items()}
    state = {}
    for weight, group, memories in optimizer.homes():
        for entry, value in _entries(group, memories.get(weight, {})):
            form, tensor = _to_tensor(value)
            state[f"{names[weight]}|{entry}{form}"] = tensor
    return state


def put_optimizer_state(optimizer: Optimizer, weights: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Put the optimizer's memory back."""
    homes = {weight: (group, memories) for weight, group, memories in optimizer.homes()}
    for key, value in state.items():
        name, entry, *form = key.split("|")
        weight = weights[name]
        group, memories = homes[weight]
        own = value if form == ["number"] else value.to(_device(weight, group, entry), copy=True)
        _put(group, memories[weight], entry, _from_tensor(own, form))
    for weight in {weights[key.split("|")[0]] for key in state}:
        group, memories = homes[weight]
        memories[weight] = by_rows(memories[weight]) if group.get("by_rows") else whole(memories[weight], weight)


def _entries(group: ParamGroup, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((f"group.{entry}", group[entry]) for entry in _COUNTED if entry in group)
    for entry, value in state.items():
        if entry == "projector":
            kept = ((key, held) for key, held in vars(value).items() if isinstance(held, (Tensor, *_PYTHON)))
            yield from ((f"projector.{key}", held) for key, held in kept)
        else:
            is_table = entry.startswith("qmap")  # bitsandbytes' one for all weights, but a file holds no tensor twice
            yield entry, value.clone() if is_table else value


def _put(group: ParamGroup, state: dict[str, Any], entry: str, value: Any) -> None:
    match entry.split("."):
        case ["group", key]:
            group[key] = value
        case ["projector", key]:
            if "projector" not in state:
                state["projector"] = group["projector"]()
            setattr(state["projector"], key, value)
        case _:
            state[entry] = value


def _to_tensor(value: Any) -> tuple[str, Tensor]:
    """Give a value as a tensor in row order: by columns, as SVD leaves it, a matrix product rounds otherwise."""
    if not isinstance(value, Tensor):
        return "|number", torch.tensor(value, dtype=_PYTHON[type(value)])
    return ("|transposed", value.t()) if value.dim() == 2 and not value.is_contiguous() else ("", value)


def _from_tensor(tensor: Tensor, form: list[str]) -> Any:
    match form:
        case ["number"]:
            return tensor.item()
        case ["transposed"]:
            return tensor.t()
    return tensor


def _device(weight: Tensor, group: ParamGroup, entry: str) -> torch.device:
    """Give where an entry lives: beside its weight, but for the counters that torch reads on the processor."""
    return torch.device("cpu") if entry == "step" and not group.get("fused") else weight.device
