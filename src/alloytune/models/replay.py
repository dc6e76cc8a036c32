"""The lower layers of a model, run once and replayed: what they gave stands in for running them again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from alloytune.models.roles import Roles
from alloytune.trying import in_place_of

Recorded = dict[nn.Module, Any]


def layers_before_adapters(model: nn.Module, roles: Roles) -> list[nn.Module]:
    """Give the layers, in the order in which they run, before the first that holds an adapter.

    None where an adapter stands outside all layers.
    """
    layers = layer_modules(model, roles)
    adapted = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    holding = [any(module in set(layer.modules()) for module in adapted) for layer in layers]
    inside = {module for layer in layers for module in layer.modules()}
    if not any(holding) or any(module not in inside for module in adapted):
        return []
    return layers[: holding.index(True)]


def layer_modules(model: nn.Module, roles: Roles, stack: str = "layers") -> list[nn.Module]:
    """Give the modules of a stack's layers, bottom first; none where they are no modules of their own or share one."""
    layers = [_module_of(model, names) for names in roles.stacks.get(stack, ())]
    if len(set(layers)) < len(layers) or any(_is_around(layer, layers) for layer in layers):
        return []
    return layers


@contextmanager
def recording(layers: Sequence[nn.Module]) -> Iterator[Recorded]:
    """Note what each of these layers gives in the passes within; a layer that ran twice is not noted."""
    recorded: Recorded = {}
    ran: list[nn.Module] = []

    def note(layer: nn.Module, _inputs: Any, output: Any) -> None:
        ran.append(layer)
        recorded[layer] = output

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
    if len(set(ran)) < len(ran):
        recorded.clear()


@contextmanager
def replaying(recorded: Recorded) -> Iterator[None]:
    """Let these layers give, without gradient, what was recorded instead of running.

    Right for a pass over the same inputs in which nothing differs before the last of them. They draw no dropout.
    """
    with ExitStack() as stack:
        for layer, output in recorded.items():
            stack.enter_context(in_place_of(layer, _giving(_detached(output))))
        yield


def _giving(output: Any) -> Any:
    def forward(*_: Any, **__: Any) -> Any:
        return output

    return forward


def _detached(output: Any) -> Any:
    match output:
        case Tensor():
            return output.detach()
        case tuple():
            return tuple(_detached(each) for each in output)
        case list():
            return [_detached(each) for each in output]
    return output


def _module_of(model: nn.Module, names: frozenset[str]) -> nn.Module:
    """Give the smallest module that runs and holds all of these weights; T5's blocks hold theirs in a list."""
    first, last = (each.split(".")[:-1] for each in (min(names), max(names)))
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    path = [part for part, _ in shared]
    while isinstance(model.get_submodule(".".join(path)), nn.ModuleList | nn.ModuleDict):
        path.pop()
    return model.get_submodule(".".join(path))


def _is_around(layer: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Tell whether a module holds layers beside itself."""
    return sum(module in set(layers) for module in layer.modules()) > 1
