"""Random small recipes: what hypothesis draws. Most can be carried out; the others must be refused in words."""

from typing import Any

from hypothesis import strategies as st

Draw = Any
Stage = dict[str, Any]

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
PARTLY = ("random(50%, of=layers)", "top(weight_change, 50%, of=mlp)")
ADAPTERS: tuple[dict[str, Any], ...] = (
    {"lora": {"rank": 2}},
    {"lora": {"rank": 2, "dropout": 0.2, "plus": 4, "rslora": True}},
    {"lora": {"rank": 2, "dora": True}},
    {"lora": {"rank": 2, "pissa": True}},
    {"lora": {"rank": 3, "on": "random(50%, of=attention)"}},
    {"adalora": {"rank": 1, "start": 3}},
    {"ia3": {}},
    {"oft": {"block": 4}},
    {"shira": {"rank": 1}},
    {"vera": {"rank": 4}},
    {"bottleneck": {"reduction": 4, "gate": True}},
    {"prefix": {"length": 3, "gate": True}},
    {"bottleneck": {"reduction": 4, "on": "mlp", "placement": "parallel", "dropout": 0.2}},
)
OPTIMIZERS = (
    "sgd",
    "adafactor",
    "lion",
    "muon",
    "schedule_free",
    {"adamw": {"beta2": 0.9}},
    {"galore": {"rank": 2, "every": 2}},
)
SPEED: dict[str, st.SearchStrategy[Any]] = {
    "rate": st.sampled_from([2e-3, "auto", {"scale": "rgn", "largest": 2e-3}, {"scale": "weight_change"}]),
    "rates": st.sampled_from([{"head": 1e-2}, {"head": 1e-2, "layers": 1e-3}, {"norm": "auto"}]),
    "score": st.just({"batches": 2, "rank": 1}),
    "layer_decay": st.just(0.5),
    "schedule": st.sampled_from(["constant", "cosine", "slanted", "stable-then-decay"]),
    "warmup": st.sampled_from([0, "50%"]),
    "optimizer": st.sampled_from(OPTIMIZERS),
    "state": st.just("keep"),
    "weight_decay": st.sampled_from([0, 0.3]),
    "decay_to": st.sampled_from(["pretrained", "stage-start"]),
    "clip": st.sampled_from([None, 0.1, {"norm": 0.1, "per": "group"}]),
    "label_smoothing": st.just(0.1),
    "evaluate": st.sampled_from(["1 update", "2 updates"]),
    "keep": st.just("last"),
}
CHANCE: dict[str, st.SearchStrategy[Any]] = {
    "dropout": st.sampled_from([0, 0.3]),
    "cache": st.sampled_from([True, False]),
    "mixout": st.sampled_from([0.5, {"share": 0.5, "to": "stage-start"}]),
    "r_drop": st.just(0.5),
}
COMBINED = ("interpolate", "average", "running-average", "greedy-soup", "sum-of-changes", "reset")
RULES: tuple[dict[str, Any], ...] = (
    {"accept": {"gain": 9}},
    {"accept": {"gain": 9}, "otherwise": {"retry": {"rate": "x0.5"}}},
    {"accept": {"gain": 9}, "otherwise": "skip"},
    {"accept": {"gain": "-9 SE"}},
    {"accept": {"gain": 0, "against": "best"}, "otherwise": "stop"},
)


@st.composite
def recipes(draw: Draw, *, most: int = 3, chance: bool = True) -> dict[str, Any]:
    """Draw the settings of a recipe and at most so many stages, or a few more where a block repeats.

    Without `chance`, nothing in a forward pass is random.
    """
    standing: dict[str, bool] = {}  # adapter -> whether it can be merged
    stages: list[Stage] = []
    for number in range(draw(st.integers(1, most))):
        earlier = [stage["name"] for stage in stages]
        stages.append(draw(_stages(f"s{number}", earlier, standing, chance)))
    whole: list[Any] = list(stages)
    if most > 2 and not standing and draw(st.booleans()):
        whole.append({"repeat": {"times": 2, "stages": draw(_blocks(chance))}})
    return {
        "seed": draw(st.integers(0, 3)),
        "batch": 8,
        "checkpoint": draw(st.sampled_from(["1 update", "2 updates", "5 minutes"])),
        "stages": whole,
    }


@st.composite
def _stages(draw: Draw, name: str, earlier: list[str], standing: dict[str, bool], chance: bool) -> Stage:
    if earlier and draw(st.integers(0, 4)) == 0:
        leaving = draw(_leaving(standing))
        return {"name": name, **leaving, "combine": draw(_combinations([*earlier, name], standing, trains=False))}
    stage: Stage = {"name": name, **draw(_leaving(standing)), **draw(_attached(standing, chance))}
    parts = [*(["adapter"] if standing else []), draw(st.sampled_from(["head", *BODY, *CHOSEN]))]
    stage["train"] = " | ".join(parts if draw(st.booleans()) else parts[:1])
    stage |= {"rate": 2e-3, "until": {"updates": draw(st.integers(1, 3))}}
    knobs = SPEED | CHANCE if chance else SPEED
    idle = {"state"} if not earlier else set()
    idle |= {"score"} if not any(word in stage["train"] for word in ("top", "bottom")) else set()
    knobs = {key: values for key, values in knobs.items() if key not in idle}
    for key in draw(st.lists(st.sampled_from(sorted(knobs)), max_size=4, unique=True)):
        stage[key] = draw(knobs[key])
    if draw(st.integers(0, 3)) == 0:
        stage |= draw(st.sampled_from(RULES))
    if draw(st.integers(0, 5)) == 0:
        stage["combine"] = draw(_combinations([*earlier, name], standing, trains=True))
    return stage


@st.composite
def _leaving(draw: Draw, standing: dict[str, bool]) -> Stage:
    """Draw what a stage merges or drops of what stands."""
    if not standing or draw(st.booleans()):
        return {}
    verb = "merge" if all(standing.values()) and draw(st.booleans()) else "drop"
    name = draw(st.sampled_from(sorted(standing)))
    if len(standing) == 1 or draw(st.booleans()):
        standing.clear()
        return {verb: True}
    del standing[name]
    return {verb: name}


@st.composite
def _attached(draw: Draw, standing: dict[str, bool], chance: bool, *, surely: bool = False) -> Stage:
    if not surely and draw(st.booleans()):
        return {}
    entries = []
    for _ in range(draw(st.integers(1, 2))):
        beside = bool(standing or entries)
        fitting = [each for each in ADAPTERS if not (beside and ("vera" in each or each.get("lora", {}).get("dora")))]
        ((kind, settings),) = draw(st.sampled_from(fitting)).items()
        settings = settings if chance else {key: value for key, value in settings.items() if key != "dropout"}
        entry = {kind: settings, **({"stack": True} if beside else {})}
        if kind in standing or any(kind in other for other in entries) or draw(st.booleans()):
            entry["name"] = f"a{len(standing)}"
        standing[entry.get("name", kind)] = kind not in ("bottleneck", "prefix")
        entries.append(entry)
    return {"attach": entries if len(entries) > 1 or draw(st.booleans()) else entries[0]}


@st.composite
def _combinations(draw: Draw, names: list[str], standing: dict[str, bool], *, trains: bool) -> dict[str, Any]:
    """Draw a way of combining; models under different adapters seldom go together."""
    within = ["reset", "running-average"] if trains else ["reset"]
    how = draw(st.sampled_from(within if standing and draw(st.integers(0, 4)) else COMBINED))
    if how == "running-average":
        return {"how": how}
    if how == "reset":
        return {"how": how, "with": ["pretrained"], "of": draw(st.sampled_from([*BODY, *PARTLY]))}
    among = names if how == "sum-of-changes" else ["pretrained", *names]
    size = {"sum-of-changes": 1, "interpolate": 2}.get(how, 2)
    return {"how": how, "with": draw(st.permutations(among))[:size]}


@st.composite
def _blocks(draw: Draw, chance: bool) -> list[Stage]:
    """Draw rounds of adapters, each folded into the base."""
    standing: dict[str, bool] = {}
    attached = draw(_attached(standing, chance, surely=True))
    until = {"updates": draw(st.integers(1, 2))}
    last = {"merge": True} if all(standing.values()) else {"drop": True}
    return [
        {"name": "round", **attached, "train": "adapter | head", "rate": 2e-3, "until": until},
        {"name": "fold", **last, "train": draw(st.sampled_from(["head", "norm"])), "rate": 1e-3, "until": until},
    ]
