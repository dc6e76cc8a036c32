"""Which parameters of a model play which role, found from its module tree.

No architecture is listed. What is read beside the tree: shapes, and the words that every family uses in its names
("attention", "query", "gate").
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from alloytune.models.tree import (
    ATTENTION,
    SIDE,
    Layer,
    Weight,
    base_name,
    canonical_name,
    find_layers,
    linear_features,
    parents,
    read_weights,
)

_CROSS = re.compile(r"cross|enc_?dec|enc(oder)?_att")
_MLP = re.compile(r"mlp|ffn|feed_?forward|expert|router")
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
    adapters), "embeddings" (with the layer that a language model writes words with), "layers", "attention" with
    ".query", ".key", ".value" and ".output", "mlp" with ".up", ".gate" and ".down", "norm", "bias", "head", "pooler",
    "adapter" with ".NAME"; in two-sided models "encoder", "decoder" and "cross" as well. Roles overlap; one without
    members is absent, but for the head of a language model. `stacks` holds "layers", one set of names per layer, bottom
    first; in two-sided models "encoder.layers" and "decoder.layers", and "layers" is the one after the other. Where
    layers have adapters, "adapter.layers" holds those of each. `shared` says in words what the names do not: tied
    weights, fused projections, layers that share their weights, weights that play no role.
    """

    shapes: dict[str, tuple[int, ...]]
    members: dict[str, frozenset[str]]
    stacks: dict[str, tuple[frozenset[str], ...]]
    shared: tuple[str, ...]

    @property
    def whole_layers(self) -> list[frozenset[str]]:
        """Give the layers, bottom first, each with the adapters in it."""
        layers = self.stacks.get("layers", ())
        adapters = self.stacks.get("adapter.layers", (frozenset[str](),) * len(layers))
        return [layer | inside for layer, inside in zip(layers, adapters, strict=True)]


_Pair = tuple[str, str]  # role, parameter name


def find_roles(model: nn.Module) -> Roles:
    """Find which parameters play which role; adapters may be attached, and nothing is changed."""
    modules = {canonical_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    weights, adapters = read_weights(model, modules)
    base = base_name(model)
    layers = find_layers(modules, base, weights)
    stacks = {
        name: tuple(dict.fromkeys(frozenset(placed.weight.name for placed in layer) for layer in found))
        for name, found in layers.items()
    }
    if "encoder.layers" in stacks:
        stacks["layers"] = stacks["encoder.layers"] + stacks["decoder.layers"]
    of_adapters = _adapters_by_layer(adapters, stacks.get("layers", ()))
    stacks |= {"adapter.layers": of_adapters} if any(of_adapters) else {}

    pairs = [(role, name) for name, adapter in adapters.items() for role in ("adapter", f"adapter.{adapter}")]
    for found in layers.values():
        for layer in found:
            pairs.extend(_layer_roles(layer, _width(model, layer)))
    inside = frozenset[str]().union(*stacks.get("layers", ()))
    pairs.extend(("layers", name) for name in inside)
    outputs = _output_layer(model)
    pairs.extend(_outer_roles(weights, base, inside, outputs, two_sided="encoder.layers" in stacks))
    members = _group(pairs)
    members.setdefault("head", frozenset())  # some have none of their own
    remarks = (*_tied(weights, inside), *_fused(weights, members), *_repeated(model, stacks), *_idle(members))
    shapes = {canonical_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return Roles(shapes=shapes, members=members, stacks=stacks, shared=remarks)


def _adapters_by_layer(adapters: Iterable[str], layers: Sequence[frozenset[str]]) -> tuple[frozenset[str], ...]:
    """Sort adapter parameters by the layer that the module they hang on is in; those outside of layers are in none."""
    layer_at: dict[str, int | None] = {}  # None where a path leads to several
    for number, names in enumerate(layers):
        for path in {path for name in names for path in parents(name)}:
            layer_at[path] = None if path in layer_at else number
    found: list[set[str]] = [set() for _ in layers]
    for name in adapters:
        place = next((layer_at[path] for path in reversed([*parents(name)]) if path in layer_at), None)
        if place is not None:
            found[place].add(name)
    return tuple(map(frozenset, found))


# Roles inside a layer.


def _layer_roles(layer: Layer, width: int | None) -> Iterator[_Pair]:
    others: Layer = []
    for placed in layer:
        weight, cross = placed.weight, bool(_CROSS.search(placed.words))
        if cross:
            yield "cross", weight.name
        if weight.is_norm:
            continue
        if ATTENTION.search(placed.words):
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


def _mlp_roles(layer: Layer, width: int | None) -> Iterator[_Pair]:
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


def _width(model: nn.Module, layer: Layer) -> int | None:
    """Return the width of the stream between layers: the configured one if a norm has it too, or by the norms."""
    norms = [placed for placed in layer if placed.weight.is_norm]
    outside = [placed for placed in norms if not ATTENTION.search(placed.words.split()[1].rpartition(".")[0])]
    sizes = Counter(placed.weight.parameter.numel() for placed in (outside or norms))
    configured: int | None = getattr(getattr(model, "config", None), "hidden_size", None)
    return configured if configured in sizes or not sizes else sizes.most_common(1)[0][0]


# Roles of the whole model.


def _outer_roles(
    weights: list[Weight], base: str, inside: frozenset[str], outputs: nn.Module | None, *, two_sided: bool
) -> Iterator[_Pair]:
    heads = _heads(weights, base, inside)
    written = frozenset(weight.name for weight in weights if outputs is not None and weight.owner is outputs)
    heads -= written
    widths = {weight.parameter.shape[-1] for weight in weights if isinstance(weight.owner, nn.Embedding)}
    for weight in weights:
        roles = ["all"]
        roles += ["norm"] * weight.is_norm + ["bias"] * weight.is_bias
        side = SIDE.search(weight.name) if two_sided and weight.name not in heads else None
        roles += [side[1]] if side else []
        if weight.name in heads:
            roles.append("head")
        elif weight.name in written and not weight.is_bias:
            roles.append("embeddings")
        elif weight.name not in inside:
            roles += _body_roles(weight, widths)
        yield from ((role, weight.name) for role in roles)


def _output_layer(model: nn.Module) -> nn.Module | None:
    """Give the layer that a language model writes words with; it came with the model, and is no task's head."""
    find = getattr(model, "get_output_embeddings", None)
    layer = find() if find is not None else None
    while isinstance(layer, BaseTunerLayer):
        layer = layer.get_base_layer()
    return layer


def _body_roles(weight: Weight, embedding_widths: set[int]) -> list[str]:
    """Return the roles of a weight of the body that is in no layer."""
    if weight.is_embedding:
        return ["embeddings"]
    if ATTENTION.search(weight.word) and not weight.is_norm:
        return ["attention"]
    if "pool" in weight.name.lower():
        return ["pooler"]
    features = linear_features(weight.owner)
    resizes = features is not None and features[0] != features[1] and embedding_widths.intersection(features)
    return ["embeddings"] if resizes else []


def _heads(weights: list[Weight], base: str, inside: frozenset[str]) -> frozenset[str]:
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


def _tied(weights: list[Weight], inside: frozenset[str]) -> Iterator[str]:
    for weight in weights:
        if len(weight.names) > 1 and weight.name not in inside:
            yield f"{', '.join(weight.names[1:])}: tied to {weight.name}, counted once under that name"


def _fused(weights: list[Weight], members: dict[str, frozenset[str]]) -> Iterator[str]:
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
