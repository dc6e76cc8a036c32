"""The module tree of a model: its weights by name with the modules that hold them, and its layers.

No architecture is listed. What is read: the classes of modules, the lists of repeated blocks, and their sizes.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

ATTENTION = re.compile(r"attn|attention")
SIDE = re.compile(r"(encoder|decoder)\b")
_EMBEDDING = re.compile(r"embed|emb\b")
_WRAPPED = re.compile(r"\.base_layer(?=\.|$)")
_LAYER_OF_RNN = re.compile(r"_l(\d+)(_reverse)?$")


@dataclass(frozen=True)
class Weight:
    """A pretrained or head parameter: its canonical names, of which the first counts, and the module that holds it."""

    names: tuple[str, ...]
    parameter: nn.Parameter
    owner: nn.Module

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def module_name(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def word(self) -> str:
        """The word that says what it is for: its module's, or its own where that is not "weight" or "bias"."""
        *path, last = self.name.split(".")
        return (path[-1] if path and last in ("weight", "bias") else last).lower()

    @property
    def is_norm(self) -> bool:
        return "norm" in type(self.owner).__name__.lower() and self.parameter.dim() < 2

    @property
    def is_bias(self) -> bool:
        return "bias" in self.name.rpartition(".")[2]

    @property
    def is_embedding(self) -> bool:
        if ATTENTION.search(self.name.lower()):  # a bias looked up by distance belongs to the attention it serves
            return False
        return isinstance(self.owner, nn.Embedding) or bool(_EMBEDDING.search(self.name.lower()))


@dataclass(frozen=True)
class Placed:
    """A weight inside a layer, with every word on its way down from there: names and class names."""

    weight: Weight
    words: str


Layer = list[Placed]


def canonical_name(name: str) -> str:
    """Return the name a weight has without adapters: PEFT moves the weights of an adapted layer into ".base_layer"."""
    return _WRAPPED.sub("", name)


def linear_features(module: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) of a linear layer, GPT-2's transposed one included; None for any other module."""
    if isinstance(module, Conv1D):
        rows, columns = module.weight.shape
        return int(rows), int(columns)
    source, result = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (source, result) if isinstance(source, int) and isinstance(result, int) else None


def read_weights(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[list[Weight], dict[str, str]]:
    """Return the weights in the model's order, and adapter parameters with the names of their adapters."""
    tuners = {name for name, module in model.named_modules() if isinstance(module, (BaseTuner, BaseTunerLayer))}
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    adapters = {found[0]: adapter for found in names.values() if (adapter := _adapter_of(found[0], tuners))}
    weights = [
        Weight(tuple(canonical), parameter, modules[canonical[0].rpartition(".")[0]])
        for parameter, found in names.items()
        if found[0] not in adapters
        for canonical in [[canonical_name(name) for name in found]]
    ]
    return weights, {canonical_name(name): adapter for name, adapter in adapters.items()}


def _adapter_of(name: str, tuners: set[str]) -> str | None:
    """Give the adapter that PEFT brought a parameter with; None where it is not PEFT's.

    PEFT's hang on a tuner, not on the layer that it wraps, and lie there by adapter: `...query.lora_A.NAME.weight`.
    """
    for parent in parents(name):
        if parent in tuners:
            part, _, rest = name[len(parent) + 1 :].partition(".")
            if part not in ("base_layer", "model"):
                return rest.partition(".")[0]
    return name.split(".")[1] if name.startswith("prompt_encoder.") else None


def parents(name: str) -> Iterator[str]:
    """Yield the paths above a name: a.b.c gives a, a.b."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        yield ".".join(parts[:length])


def base_name(model: nn.Module) -> str:
    """Return the path of the pretrained body inside a task model; "" where the model is the body itself."""
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None) if prefix else None
    return next((name for name, module in model.named_modules() if module is body), "")


# Layers: the largest list of blocks, one on each side of a two-sided model.


def find_layers(modules: dict[str, nn.Module], base: str, weights: list[Weight]) -> dict[str, list[Layer]]:
    """Give the weights of each layer, bottom first: as `layers`, or `encoder.layers` and `decoder.layers`."""
    lists = dict(_block_lists(modules[base], base))
    sides: dict[str, dict[str, nn.ModuleList]] = {"encoder": {}, "decoder": {}}
    for path, blocks in lists.items():
        if side := SIDE.search(path):
            sides[side[1]][path] = blocks
    if all(sides.values()):
        stacks = {f"{side}.layers": _stack(found) for side, found in sides.items()}
    else:
        stacks = {"layers": _stack(lists)} if lists else {}
    if not stacks:
        return _recurrent_layers(weights)
    return {name: _fill(rows, weights, modules) for name, rows in stacks.items()}


def _block_lists(module: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the outermost lists whose every member has parameters."""
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList) and len(child) and all(map(_size, child)):
            yield child_path, child
        else:
            yield from _block_lists(child, child_path)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _stack(lists: dict[str, nn.ModuleList]) -> list[tuple[str, ...]]:
    """Return the layers of the largest list, each as the paths that make it up.

    Lists of the same length beside it hold pieces of the same layers (XLM keeps attentions, norms and ffns apart).
    """
    largest = max(lists, key=lambda path: _size(lists[path]))
    parent, length = largest.rpartition(".")[0], len(lists[largest])
    pieces = [path for path, blocks in lists.items() if path.rpartition(".")[0] == parent and len(blocks) == length]
    if len(pieces) > 1:
        return [tuple(f"{path}.{number}" for path in pieces) for number in range(length)]
    return [(path,) for number, block in enumerate(lists[largest]) for path in _members(block, f"{largest}.{number}")]


def _members(block: nn.Module, path: str) -> list[str]:
    """Return the layers in a block: itself, or those of the group that it is (a list of like blocks, nothing else)."""
    children = [(name, child) for name, child in block.named_children() if _size(child)]
    if not isinstance(block, nn.ModuleList):
        if len(children) != 1 or _size(children[0][1]) != _size(block) or not isinstance(children[0][1], nn.ModuleList):
            return [path]
        return _members(children[0][1], f"{path}.{children[0][0]}")
    if len({type(child) for _, child in children}) > 1:  # T5: attention and feed-forward make one block
        return [path.rpartition(".")[0]]
    return [member for name, child in children for member in _members(child, f"{path}.{name}")]


def _fill(rows: list[tuple[str, ...]], weights: list[Weight], modules: dict[str, nn.Module]) -> list[Layer]:
    number_of = {path: number for number, row in enumerate(rows) for path in row}
    layers: list[Layer] = [[] for _ in rows]
    for weight in weights:
        for name in weight.names:
            for path in parents(name):
                if path in number_of:
                    layers[number_of[path]].append(Placed(weight, _words(name, path, modules)))
    return layers


def _words(name: str, block: str, modules: dict[str, nn.Module]) -> str:
    """Return the words from a block's list down to a weight, without the class of the block itself."""
    classes = [type(modules[path]).__name__ for path in parents(name) if path.startswith(f"{block}.")]
    return " ".join([block.split(".")[-2], name[len(block) + 1 :], *classes]).lower()


def _recurrent_layers(weights: list[Weight]) -> dict[str, list[Layer]]:
    """Return the layers of torch's own recurrent networks, which number them in the names of their weights."""
    layers: dict[tuple[str, int], Layer] = defaultdict(list)
    for weight in weights:
        number = _LAYER_OF_RNN.search(weight.name)
        if number and isinstance(weight.owner, nn.RNNBase):
            layers[weight.module_name, int(number[1])].append(Placed(weight, ""))
    return {"layers": list(layers.values())} if layers else {}
