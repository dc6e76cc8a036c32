"""Which parameters of a model play which role, found from its module tree.

No architecture is listed. What is read: the classes of modules (embedding, linear, norm), the lists of repeated
blocks, shapes, and the words that every family uses in its names ("attention", "query", "gate").
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

_ATTENTION = re.compile(r"attn|attention")
_CROSS = re.compile(r"cross|enc_?dec|enc(oder)?_att")
_EMBEDDING = re.compile(r"embed|emb\b")
_MLP = re.compile(r"mlp|ffn|feed_?forward|expert|router")
_SIDE = re.compile(r"(encoder|decoder)\b")
_WRAPPED = re.compile(r"\.base_layer(?=\.|$)")
_LAYER_OF_RNN = re.compile(r"_l(\d+)(_reverse)?$")
# The first pattern that a projection's word fits names the parts it holds.
_ATTENTION_PARTS = (
    (re.compile(r"qkv|query_?key_?value|c_attn|in_proj(_weight|_bias)?$"), ("query", "key", "value")),
    (re.compile(r"kv|key_?value"), ("key", "value")),
    (re.compile(r"(^|_)w?q(_|\d|$)|query"), ("query",)),
    (re.compile(r"(^|_)w?k(_|\d|$)|key"), ("key",)),
    (re.compile(r"(^|_)w?v(_|\d|$)|value"), ("value",)),
    (re.compile(r"(^|_)w?o(_|\d|$)|out|dense|^(c_|post_)?proj$"), ("output",)),
)
_EXPERT_PARTS = (
    (re.compile(r"gate_?up|up_?gate"), ("up", "gate")),
    (re.compile(r"up"), ("up",)),
    (re.compile(r"gate"), ("gate",)),
    (re.compile(r"down"), ("down",)),
)


@dataclass(frozen=True)
class Roles:
    """Which parameters play which role. Names are canonical (see `canonical_name`); tied weights appear once.

    `shapes` lists every parameter in the model's order, adapters too. `members` maps a role to its names: "all" (no
    adapters), "embeddings", "layers", "attention" with ".query", ".key", ".value" and ".output", "mlp" with ".up",
    ".gate" and ".down", "norm", "bias", "head", "pooler", "adapter"; in two-sided models "encoder", "decoder" and
    "cross" as well. Roles overlap; one without members is absent. `stacks` holds "layers", one set of names per layer,
    bottom first; in two-sided models "encoder.layers" and "decoder.layers", and "layers" is the one after the other.
    `shared` says in words what the names do not: tied weights, fused projections, layers that share their weights,
    weights that play no role.
    """

    shapes: dict[str, tuple[int, ...]]
    members: dict[str, frozenset[str]]
    stacks: dict[str, tuple[frozenset[str], ...]]
    shared: tuple[str, ...]


@dataclass(frozen=True)
class _Weight:
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
        if _ATTENTION.search(self.name.lower()):  # a bias looked up by distance belongs to the attention it serves
            return False
        return isinstance(self.owner, nn.Embedding) or bool(_EMBEDDING.search(self.name.lower()))


@dataclass(frozen=True)
class _Placed:
    """A weight inside a layer, with every word on its way down from there: names and class names."""

    weight: _Weight
    words: str


_Layer = list[_Placed]
_Pair = tuple[str, str]  # role, parameter name


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


def find_roles(model: nn.Module) -> Roles:
    """Find which parameters play which role; adapters may be attached, and nothing is changed."""
    modules = {canonical_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    weights, adapters = _read_weights(model, modules)
    base = _base_name(model)
    layers = _find_layers(modules, base, weights)
    stacks = {
        name: tuple(dict.fromkeys(frozenset(placed.weight.name for placed in layer) for layer in found))
        for name, found in layers.items()
    }
    if "encoder.layers" in stacks:
        stacks["layers"] = stacks["encoder.layers"] + stacks["decoder.layers"]

    pairs = [("adapter", name) for name in adapters]
    for found in layers.values():
        for layer in found:
            pairs.extend(_layer_roles(layer, _width(model, layer)))
    inside = frozenset[str]().union(*stacks.get("layers", ()))
    pairs.extend(("layers", name) for name in inside)
    pairs.extend(_outer_roles(weights, base, inside, two_sided="encoder.layers" in stacks))
    members = _group(pairs)
    remarks = (*_tied(weights, inside), *_fused(weights, members), *_repeated(model, stacks), *_idle(members))
    shapes = {canonical_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return Roles(shapes=shapes, members=members, stacks=stacks, shared=remarks)


def _read_weights(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[list[_Weight], list[str]]:
    """Return the weights in the model's order, and the names of adapter parameters."""
    tuners = {name for name, module in model.named_modules() if isinstance(module, (BaseTuner, BaseTunerLayer))}
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    adapters = [found[0] for found in names.values() if _is_adapter(found[0], tuners)]
    weights = [
        _Weight(tuple(canonical), parameter, modules[canonical[0].rpartition(".")[0]])
        for parameter, found in names.items()
        if not _is_adapter(found[0], tuners)
        for canonical in [[canonical_name(name) for name in found]]
    ]
    return weights, [canonical_name(name) for name in adapters]


def _is_adapter(name: str, tuners: set[str]) -> bool:
    """Say whether PEFT brought a parameter: it hangs on a tuner, and is not of the layer that the tuner wraps."""
    for parent in _parents(name):
        if parent in tuners and name[len(parent) + 1 :].partition(".")[0] not in ("base_layer", "model"):
            return True
    return name.startswith("prompt_encoder.")


def _parents(name: str) -> Iterator[str]:
    """Yield the paths above a name: a.b.c gives a, a.b."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        yield ".".join(parts[:length])


def _base_name(model: nn.Module) -> str:
    """Return the path of the pretrained body inside a task model; "" where the model is the body itself."""
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None) if prefix else None
    return next((name for name, module in model.named_modules() if module is body), "")


# Layers: the largest list of blocks, one on each side of a two-sided model.


def _find_layers(modules: dict[str, nn.Module], base: str, weights: list[_Weight]) -> dict[str, list[_Layer]]:
    lists = dict(_block_lists(modules[base], base))
    sides: dict[str, dict[str, nn.ModuleList]] = {"encoder": {}, "decoder": {}}
    for path, blocks in lists.items():
        if side := _SIDE.search(path):
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


def _fill(rows: list[tuple[str, ...]], weights: list[_Weight], modules: dict[str, nn.Module]) -> list[_Layer]:
    number_of = {path: number for number, row in enumerate(rows) for path in row}
    layers: list[_Layer] = [[] for _ in rows]
    for weight in weights:
        for name in weight.names:
            for path in _parents(name):
                if path in number_of:
                    layers[number_of[path]].append(_Placed(weight, _words(name, path, modules)))
    return layers


def _words(name: str, block: str, modules: dict[str, nn.Module]) -> str:
    """Return the words from a block's list down to a weight, without the class of the block itself."""
    classes = [type(modules[path]).__name__ for path in _parents(name) if path.startswith(f"{block}.")]
    return " ".join([block.split(".")[-2], name[len(block) + 1 :], *classes]).lower()


def _recurrent_layers(weights: list[_Weight]) -> dict[str, list[_Layer]]:
    """Return the layers of torch's own recurrent networks, which number them in the names of their weights."""
    layers: dict[tuple[str, int], _Layer] = defaultdict(list)
    for weight in weights:
        number = _LAYER_OF_RNN.search(weight.name)
        if number and isinstance(weight.owner, nn.RNNBase):
            layers[weight.module_name, int(number[1])].append(_Placed(weight, ""))
    return {"layers": list(layers.values())} if layers else {}


# Roles inside a layer.


def _layer_roles(layer: _Layer, width: int | None) -> Iterator[_Pair]:
    others: _Layer = []
    for placed in layer:
        weight, cross = placed.weight, bool(_CROSS.search(placed.words))
        if cross:
            yield "cross", weight.name
        if weight.is_norm:
            continue
        if _ATTENTION.search(placed.words):
            yield "attention", weight.name
            yield from ((f"attention.{part}", weight.name) for part in _attention_parts(weight.word, cross))
        else:
            others.append(placed)
    yield from _mlp_roles(others, width)


def _attention_parts(word: str, cross: bool) -> tuple[str, ...]:
    if cross and word == "c_attn":  # GPT-2: the query of a cross-attention has a layer of its own
        return ("key", "value")
    return _first_fit(_ATTENTION_PARTS, word)


def _first_fit(table: Iterable[tuple[re.Pattern[str], tuple[str, ...]]], word: str) -> tuple[str, ...]:
    return next((parts for pattern, parts in table if pattern.search(word)), ())


def _mlp_roles(layer: _Layer, width: int | None) -> Iterator[_Pair]:
    features = {}
    for placed in layer:
        found = linear_features(placed.weight.owner)
        if found is not None:
            features[placed.weight.module_name] = found
    parts_of = _mlp_parts(features, width) if width else {}
    for placed in layer:
        weight = placed.weight
        if weight.module_name in features:
            parts = parts_of.get(weight.module_name, ())
        elif _MLP.search(placed.words):  # experts kept as one tensor, routers
            parts = _first_fit(_EXPERT_PARTS, weight.word) if "expert" in placed.words else ()
        else:
            continue
        yield "mlp", weight.name
        yield from ((f"mlp.{part}", weight.name) for part in parts)


def _mlp_parts(features: dict[str, tuple[int, int]], width: int) -> dict[str, tuple[str, ...]]:
    """Tell up, gate and down apart by (in, out): down leads back to the width, the others to where down starts."""
    downs = [path for path, (source, result) in features.items() if result == width != source]
    if not downs:  # as wide inside as outside: the last one leads back
        downs = [path for path, shape in features.items() if shape == (width, width)][1:][-1:]
    inner = {features[path][0] for path in downs}
    parts: dict[str, tuple[str, ...]] = dict.fromkeys(downs, ("down",))
    ups: dict[str, list[str]] = defaultdict(list)
    for path, (source, result) in features.items():
        if source != width or path in parts:
            continue
        parent, _, word = path.rpartition(".")
        if result in inner:
            ups[parent].append(path)
            parts[path] = ("gate",) if "gate" in word else ("up",)
        elif result % 2 == 0 and result // 2 in inner:
            parts[path] = ("up", "gate")
    for pair in ups.values():
        if len(pair) == 2 and all(parts[path] == ("up",) for path in pair):
            parts[pair[0]] = ("gate",)  # unnamed pairs (wi_0 and wi_1, w1 and w3) put the one with the activation first
    return parts


def _width(model: nn.Module, layer: _Layer) -> int | None:
    """Return the width of the stream between layers: the configured one if a norm has it too, or by the norms."""
    norms = [placed for placed in layer if placed.weight.is_norm]
    outside = [placed for placed in norms if not _ATTENTION.search(placed.words.split()[1].rpartition(".")[0])]
    sizes = Counter(placed.weight.parameter.numel() for placed in (outside or norms))
    configured: int | None = getattr(getattr(model, "config", None), "hidden_size", None)
    return configured if configured in sizes or not sizes else sizes.most_common(1)[0][0]


# Roles of the whole model.


def _outer_roles(weights: list[_Weight], base: str, inside: frozenset[str], two_sided: bool) -> Iterator[_Pair]:
    heads = _heads(weights, base, inside)
    widths = {weight.parameter.shape[-1] for weight in weights if isinstance(weight.owner, nn.Embedding)}
    for weight in weights:
        roles = ["all"]
        roles += ["norm"] * weight.is_norm + ["bias"] * weight.is_bias
        side = _SIDE.search(weight.name) if two_sided and weight.name not in heads else None
        roles += [side[1]] if side else []
        if weight.name in heads:
            roles.append("head")
        elif weight.name not in inside:
            roles += _body_roles(weight, widths)
        yield from ((role, weight.name) for role in roles)


def _body_roles(weight: _Weight, embedding_widths: set[int]) -> list[str]:
    """Return the roles of a weight of the body that is in no layer."""
    if weight.is_embedding:
        return ["embeddings"]
    if _ATTENTION.search(weight.word) and not weight.is_norm:
        return ["attention"]
    if "pool" in weight.name.lower():
        return ["pooler"]
    features = linear_features(weight.owner)
    resizes = features is not None and features[0] != features[1] and embedding_widths.intersection(features)
    return ["embeddings"] if resizes else []


def _heads(weights: list[_Weight], base: str, inside: frozenset[str]) -> frozenset[str]:
    """Return what the task class added: all outside the body, or beside it where a class inlines the body.

    A weight that the body holds too (an output layer tied to the embeddings) is not the head's.
    """
    if base:
        return frozenset(w.name for w in weights if not any(name.startswith(f"{base}.") for name in w.names))
    body = {name.partition(".")[0] for w in weights if w.name in inside for name in w.names}
    return frozenset(
        w.name
        for w in weights
        if body.isdisjoint(name.partition(".")[0] for name in w.names)
        if not (w.is_embedding or w.is_norm or "pool" in w.name.lower())
        if inside and w.module_name
    )


def _group(pairs: Iterable[_Pair]) -> dict[str, frozenset[str]]:
    members: dict[str, set[str]] = defaultdict(set)
    for role, name in pairs:
        members[role].add(name)
    return {role: frozenset(members[role]) for role in sorted(members)}


# Remarks.


def _tied(weights: list[_Weight], inside: frozenset[str]) -> Iterator[str]:
    for weight in weights:
        if len(weight.names) > 1 and weight.name not in inside:
            yield f"{', '.join(weight.names[1:])}: tied to {weight.name}, counted once under that name"


def _fused(weights: list[_Weight], members: dict[str, frozenset[str]]) -> Iterator[str]:
    """Name each projection that answers to several roles, once for all layers."""
    remarks: Counter[str] = Counter()
    for weight in weights:
        parts = [role for role, names in members.items() if "." in role and weight.name in names]
        if len(parts) > 1 and not weight.is_bias:
            remarks[f"{weight.word}: one weight for {', '.join(parts)}"] += 1
    yield from (f"{remark} (in {count} places)" for remark, count in remarks.items())


def _repeated(model: nn.Module, stacks: dict[str, tuple[frozenset[str], ...]]) -> Iterator[str]:
    configured = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
    distinct = len(stacks.get("layers", ()))
    if 0 < distinct < configured and "encoder.layers" not in stacks:
        yield f"layers: the {configured} layers of the model share the weights of {distinct}, counted as {distinct}"


def _idle(members: dict[str, frozenset[str]]) -> Iterator[str]:
    named = frozenset[str]().union(*(names for role, names in members.items() if role not in ("all", "bias")))
    for name in sorted(members.get("all", frozenset()) - named):
        yield f"{name}: in no role but {'all and bias' if name in members.get('bias', ()) else 'all'}"
