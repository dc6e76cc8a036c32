"""What moves in a random stage, and when: a selection, turns, layers that join or freeze, a joint objective."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hypothesis import strategies as st

Draw = Any
Keys = dict[str, Any]

BODY = ("all - head", "layers", "layers[-1:]", "layers[0]", "attention", "mlp", "embeddings", "norm", "bias")
CHOSEN = (
    "random(50%, by=layer)",
    "random(40%, of=attention)",
    "random(30%, by=element, of=mlp)",
    "top(rgn, 50%)",
    "top(fisher, 20%, by=element, of=attention)",
    "top(weight_change, 10%, by=element)",
    "bottom(gradient, 1, by=layer)",
    "top(spectral_snr, 30%, of=mlp)",
    "top(lowrank_misfit, 2)",
    "top(snr, 25%, of=attention)",
    "lowest_layers(50%)",
)
IN_TURNS = (
    "random(50%, by=layer)",
    "random(50%, of=attention) | random(50%, of=mlp)",
    "random(30%, by=element)",
    "random(1, of=embeddings) | cycle(by=tensor, of=norm)",
    "cycle(by=layer)",
    "cycle(by=tensor, of=attention)",
    "top(rgn, 1, by=layer)",
    "top(fisher, 20%, by=element, of=mlp)",
    "top(snr, 30%, of=attention)",
    "bottom(weight_change, 50%)",
)
ADAPTERS_IN_TURNS = (
    "random(50%, of=adapter)",
    "random(30%, by=element, of=adapter)",
    "cycle(by=tensor, of=adapter)",
    "cycle(by=layer, of=attention | adapter)",
)
PARTIAL = ("layers[-1:]", "attention", "mlp", "layers[0] & norm", "random(50%, of=attention)")
WEIGHTS = (0.5, 2, "0 -> 1", "1 -> 0.5 cosine", "1 until 50%, 0", "0 until 2 updates, 1 -> 0 until 4 updates, 0.5")
# What a loss of labels alone has, and which optimizers move matrices inside the body alone.
OF_LABELS = ("label_smoothing", "r_drop")
OF_MATRICES = ("embeddings", "norm", "bias", "head", "adapter", "")


class Around(NamedTuple):
    """What a stage stands in: adapters by name, whether it learns labels, the model, whether chance may play."""

    standing: Mapping[str, Keys]
    labels: bool
    family: str
    layers: int
    chance: bool

    @property
    def models_language(self) -> bool:
        """Tell whether there is a head for text without labels."""
        return self.family != "t5"


class Moves(NamedTuple):
    """The keys of a stage that say what moves when; the selection of the body, whether the head and adapters move."""

    keys: Keys
    body: str
    head: bool
    adapter: bool

    @property
    def rests(self) -> bool:
        """Tell whether some of it may rest."""
        return not isinstance(self.keys["train"], str) or bool(self.keys.keys() & {"unfreeze", "freeze_when", "joint"})


@st.composite
def moves(draw: Draw, around: Around) -> Moves:
    """Draw what moves in a stage, and when."""
    ways = [_steadily, _steadily, _in_turns, _joining, _settling]
    ways += [_jointly] if around.standing or around.layers > 1 else []
    found: Moves = draw(draw(st.sampled_from(ways))(around))
    return found


def _union(*parts: str) -> str:
    return " | ".join(part for part in parts if part)


@st.composite
def _steadily(draw: Draw, around: Around) -> Moves:
    body, adapter = draw(st.sampled_from([*BODY, *CHOSEN])), bool(around.standing) and draw(st.booleans())
    alone = draw(st.integers(0, 4)) == 0
    if alone and (adapter or around.labels):
        return Moves({"train": "adapter" if adapter else "head"}, "", not adapter, adapter)
    head = around.labels and body not in ("all - head", "norm", "bias") and draw(st.booleans())
    train = _union("adapter" if adapter else "", body, "head" if head else "")
    return Moves({"train": train}, body, head, adapter)


@st.composite
def _in_turns(draw: Draw, around: Around) -> Moves:
    of_adapters = bool(around.standing) and draw(st.booleans())
    choose = draw(st.sampled_from(ADAPTERS_IN_TURNS if of_adapters else IN_TURNS))
    head = around.labels and draw(st.booleans())
    adapter = bool(around.standing) and not of_adapters and draw(st.booleans())
    always = _union("adapter" if adapter else "", "head" if head else "")
    state = draw(st.sampled_from(["reset"] if "element" in choose else ["reset", "keep"]))
    every = draw(st.sampled_from(["1 update", "2 updates", "0.5 epochs"]))
    rotate = {"choose": choose, "every": every, "state": state}
    body = "" if of_adapters else choose
    return Moves(
        {"train": {**({"always": always} if always else {}), "rotate": rotate}}, body, head, adapter or of_adapters
    )


@st.composite
def _layers(draw: Draw, around: Around) -> Moves:
    """Draw a selection of which at least two layers move, counting the embeddings."""
    body = draw(st.sampled_from(["all - head", "embeddings | layers", *(["layers", "bias"] * (around.layers > 1))]))
    head = around.labels and body not in ("all - head", "bias") and draw(st.booleans())
    adapter = bool(around.standing) and draw(st.booleans())
    return Moves({"train": _union("adapter" if adapter else "", body, "head" if head else "")}, body, head, adapter)


@st.composite
def _joining(draw: Draw, around: Around) -> Moves:
    found = draw(_layers(around))
    interval = draw(st.sampled_from([{"every": "1 update"}, {"every": "2 updates"}, {"one": "epoch"}, {}]))
    side = draw(st.sampled_from(["top", "bottom"]))
    return found._replace(keys={**found.keys, "unfreeze": {"from": side, **interval}})


@st.composite
def _settling(draw: Draw, around: Around) -> Moves:
    found = draw(_layers(around))
    change = draw(st.sampled_from(["below 1e-4", "below 3e-3", "below 9"]))
    check = draw(st.sampled_from(["20%", "40%"]))
    return found._replace(keys={**found.keys, "freeze_when": {"change": change, "check": check}})


@st.composite
def _jointly(draw: Draw, around: Around) -> Moves:
    kinds = {kind for entry in around.standing.values() for kind in entry}
    modes = ["update"]
    modes += ["views", "sample"] if not any("pissa" in str(entry) for entry in around.standing.values()) else []
    # with updates that are near to each other and not the same, either side may win
    modes += ["route"] if around.chance and kinds & {"lora", "adalora", "oft", "shira"} else []
    mode = draw(st.sampled_from(modes))
    several: list[tuple[str, ...]] = [("full", "partial")]
    if around.standing:
        several = [("full", "adapter"), ("full", "partial", "adapter")]
        several += [("partial", "adapter")] if mode != "route" else []
    names = draw(st.sampled_from(several))
    of = draw(st.sampled_from(PARTIAL)) if "partial" in names else ""
    whole = draw(st.sampled_from(["all", "layers"])) if "full" in names else of
    head = around.labels and whole != "all"
    train = _union("adapter" if "adapter" in names else "", whole, "head" if head else "")
    joint: Keys = {"mode": mode, **draw(_weights(names, mode, around))}
    joint |= {"of": of} if of else {}
    if mode == "sample" and draw(st.booleans()):
        joint["every"] = draw(st.sampled_from(["1 update", "2 updates"]))
    if mode == "views":
        joint |= draw(_of_views(names, joint, around))
    return Moves({"train": train, "joint": joint}, whole, head or whole == "all", "adapter" in names)


@st.composite
def _weights(draw: Draw, names: tuple[str, ...], mode: str, around: Around) -> Keys:
    """Draw weights of which one at least never rests, and which change something."""
    same = dict.fromkeys(names, 1)
    shares = around.labels or {"full", "partial"} <= set(names)  # weights that two of the views move
    if mode == "views" and not shares:
        return same
    found = {"views": ["validate", "gradnorm", "uncertainty"], "sample": ["validate"]}.get(mode, [])
    if found and draw(st.integers(0, 2)) == 0:
        word = draw(st.sampled_from(found))
        pair = ("full", "partial") if not around.labels and word != "validate" else names
        return {**same, **dict.fromkeys(pair, word)}
    weights = {name: draw(st.sampled_from(WEIGHTS)) for name in names[1:]}
    return {names[0]: draw(st.sampled_from([1, 0.3, "0.2 -> 1"])), **weights}


@st.composite
def _of_views(draw: Draw, names: tuple[str, ...], joint: Keys, around: Around) -> Keys:
    more: Keys = {}
    if "partial" in names and draw(st.booleans()):
        more["over"] = draw(st.sampled_from(["pretrained", "stage-start"]))
    if around.labels and around.models_language and draw(st.integers(0, 2)) == 0:
        own = draw(st.sampled_from(names))
        same = dict.fromkeys(names, 1)  # the views may share no weights
        return {**more, **same, own: {"task": "language_modelling"}}
    if around.labels and draw(st.booleans()):
        more["kl"] = 0.5
    return more
