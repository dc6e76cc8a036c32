"""Random small recipes: what hypothesis draws. Most can be carried out; the others must be refused in words."""

from typing import Any, NamedTuple

from hypothesis import strategies as st

from properties.random_moves import BODY, Around, Draw, Keys, Moves, moves

Stage = dict[str, Any]
Stood = dict[str, dict[str, Keys]]  # what stood after a stage, and at first: adapters by name

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
    "rates": st.sampled_from([{"head": 1e-2}, {"layers": 1e-3}, {"norm": "auto"}]),
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
ENDS: tuple[dict[str, Any], ...] = (
    {"updates": 1},
    {"updates": 3},
    {"epochs": 0.4},
    {"epochs": 1.2},
    {"updates": 5, "patience": 1},
    {"epochs": 1, "patience": {"metric": "loss", "evaluations": 1}},
    {"updates": 4, "score": {"loss": 0.69}},
)
RULES: tuple[dict[str, Any], ...] = (
    {"accept": {"gain": 9}},
    {"accept": {"gain": 9}, "otherwise": {"retry": {"rate": "x0.5"}}},
    {"accept": {"gain": 9}, "otherwise": "skip"},
    {"accept": {"gain": "-9 SE"}},
    {"accept": {"gain": 0, "against": "best"}, "otherwise": "stop"},
)
FAMILIES = ("bert", "gpt2", "llama", "t5")


class Model(NamedTuple):
    """The tiny model that a recipe is for."""

    family: str
    layers: int
    width: int


models = st.builds(Model, st.sampled_from(FAMILIES), st.integers(1, 3), st.sampled_from([8, 16, 24]))


@st.composite
def cases(draw: Draw, *, most: int = 3, chance: bool = True) -> tuple[dict[str, Any], Model]:
    """Draw a model and the settings of a recipe for it, with at most so many stages, or a few more in a block.

    Without `chance`, nothing in a forward pass is random.
    """
    model = draw(models)
    standing: dict[str, Keys] = {}
    stages: list[Stage] = []
    stood: Stood = {"pretrained": {}}
    num_stages = draw(st.integers(1, most))
    for number in range(num_stages):
        labels = number == num_stages - 1 or model.family == "t5" or draw(st.integers(0, 3)) > 0
        stages.append(draw(_stages(f"s{number}", stages, stood, Around(standing, labels, *model[:2], chance))))
        stood[f"s{number}"] = dict(standing)
    whole: list[Any] = list(stages)
    if most > 2 and not standing and draw(st.booleans()):
        whole.append({"repeat": {"times": 2, "stages": draw(_blocks(chance))}})
    recipe = {
        "seed": draw(st.integers(0, 3)),
        "batch": 8,
        "checkpoint": draw(st.sampled_from(["1 update", "2 updates", "5 minutes"])),
        "stages": whole,
    }
    return recipe, model


@st.composite
def _stages(draw: Draw, name: str, stages: list[Stage], stood: Stood, around: Around) -> Stage:
    standing = around.standing
    learns = {} if around.labels else {"task": "language_modelling"}
    is_other = bool(stages) and stages[-1].get("task") != learns.get("task")
    leaving = draw(_leaving(standing, surely=is_other))
    if stages and around.labels and draw(st.integers(0, 4)) == 0:
        return {"name": name, **leaving, "combine": draw(_combinations(name, stood, standing, trains=False))}
    stage: Stage = {"name": name, **learns, **leaving, **draw(_attached(around))}
    moving = draw(moves(around))
    # what padding costs counts as well, and micro-batches have less of it
    ends = (*ENDS, {"epochs": 1, "flops": 5e6}) if around.chance else ENDS
    stage |= {**moving.keys, "rate": 2e-3, "until": draw(st.sampled_from(ends))}
    if draw(st.integers(0, 5)) == 0:
        stage["combine"] = draw(_combinations(name, stood, standing, trains=True))
    knobs = SPEED | CHANCE if around.chance else SPEED
    for key in draw(st.lists(st.sampled_from(sorted(knobs)), max_size=4, unique=True)):
        stage[key] = draw(knobs[key])
    if draw(st.integers(0, 3)) == 0:
        stage |= draw(st.sampled_from(RULES))
    before = {} if is_other or not stages else stages[-1]
    return _sound(stage, moving, before, around)


def _sound(stage: Stage, moving: Moves, before: Stage, around: Around) -> Stage:
    """Take out what means nothing beside the other keys of a stage, and what does not go with them."""
    joint = stage.get("joint", {})
    is_views = joint.get("mode") == "views"
    if "state" in stage and "train" in before:
        stage = {key: value for key, value in stage.items() if key != "optimizer"}
        stage |= {"optimizer": before["optimizer"]} if "optimizer" in before else {}
    kind = _kind(stage)
    train, body = str(stage["train"]), moving.body
    is_scored = any(word in str([train, joint]) for word in ("top", "bottom")) or isinstance(stage["rate"], dict)
    has_dropout = stage.get("dropout", 0.1) > 0 and around.family != "llama"
    matrices = body not in ("", "embeddings", "norm", "bias") and "embeddings" not in train
    idle = {
        "rates": not _has(moving, next(iter(stage.get("rates", {"": 0})))),
        "score": not is_scored,
        "layer_decay": not body,
        "schedule": kind == "schedule_free",
        "optimizer": (kind in ("muon", "galore") and not matrices)
        or (kind == "schedule_free" and moving.rests)
        or joint.get("mode") == "route",
        "state": "train" not in before or (kind == "schedule_free" and before.get("keep") != "last"),
        "decay_to": kind == "schedule_free" or stage.get("weight_decay") == 0,
        "label_smoothing": not around.labels or "task" in str(joint),
        "dropout": around.family == "llama",
        "cache": stage.get("cache") is True and (body != "layers[-1:]" or around.layers == 1 or bool(around.standing)),
        "mixout": is_views or not matrices,
        "r_drop": is_views or not around.labels or not (has_dropout or ("mixout" in stage and matrices)),
    }
    if is_views and "flops" in stage["until"]:
        stage["until"] = {"epochs": 1}
    if "patience" in stage["until"] or "score" in stage["until"]:
        stage["evaluate"] = "1 update"
    return {key: value for key, value in stage.items() if not idle.get(key)}


def _kind(stage: Stage) -> str:
    """Give the kind of a stage's optimizer."""
    optimizer = stage.get("optimizer", "adamw")
    return optimizer if isinstance(optimizer, str) else next(iter(optimizer))


def _has(moving: Moves, role: str) -> bool:
    """Tell whether something of a role surely moves."""
    wholes = {"head": ("all",), "layers": ("all", "all - head", "layers"), "norm": ("all", "all - head", "norm")}
    return moving.body in wholes.get(role, ()) or (role == "head" and moving.head)


@st.composite
def _leaving(draw: Draw, standing: dict[str, Keys], *, surely: bool = False) -> Stage:
    """Draw what a stage merges or drops of what stands; all of it `surely` where something else is learned."""
    if not standing or (not surely and draw(st.booleans())):
        return {}
    chosen = sorted(standing) if surely or draw(st.booleans()) else [draw(st.sampled_from(sorted(standing)))]
    entries = [standing[name] for name in chosen]
    is_stacked = len(chosen) < len(standing) and "stack" in entries[0]
    verbs = ["merge"] * (all(map(_merges, entries)) and not is_stacked) + ["drop"] * all(map(_drops, entries))
    if not verbs:
        return {}
    for name in chosen:
        del standing[name]
    return {draw(st.sampled_from(verbs)): True if not standing else chosen[0]}


def _merges(entry: Keys) -> bool:
    return not entry.keys() & {"bottleneck", "prefix"}


def _drops(entry: Keys) -> bool:
    return "pissa" not in str(entry)


@st.composite
def _attached(draw: Draw, around: Around, *, surely: bool = False) -> Stage:
    if not surely and draw(st.booleans()):
        return {}
    standing, entries = around.standing, []
    for _ in range(draw(st.integers(1, 2))):
        beside = bool(standing)
        fitting = [
            each
            for each in ADAPTERS
            if not (beside and ("vera" in each or each.get("lora", {}).get("dora")))
            and not (around.family == "gpt2" and each.keys() & {"oft", "shira"})
            and (around.labels or _merges(each))
        ]
        if any("vera" in other for other in standing.values()):
            break
        ((kind, settings),) = draw(st.sampled_from(fitting)).items()
        settings = settings if around.chance else {key: value for key, value in settings.items() if key != "dropout"}
        entry = {kind: settings, **({"stack": True} if beside else {})}
        if kind in standing or draw(st.booleans()):
            entry["name"] = next(name for name in ("a0", "a1", "a2", "a3", "a4", "a5", "a6") if name not in standing)
        standing[entry.get("name", kind)] = entry
        entries.append(entry)
    if not entries:
        return {}
    return {"attach": entries if len(entries) > 1 or draw(st.booleans()) else entries[0]}


@st.composite
def _combinations(draw: Draw, name: str, stood: Stood, standing: dict[str, Keys], *, trains: bool) -> dict[str, Any]:
    """Draw a way of combining, of models under the same adapters."""
    alike = [earlier for earlier, then in stood.items() if then == standing] + [name]
    changed = [each for each in alike if each != "pretrained"]
    ways = ["reset", *(["running-average"] if trains else [])]
    ways += ["interpolate", "average", "greedy-soup"] if len(alike) > 1 else []
    ways += ["sum-of-changes"] if not standing else []
    how = draw(st.sampled_from(ways))
    match how:
        case "running-average":
            return {"how": how}
        case "reset":
            return {"how": how, "with": ["pretrained"], "of": draw(st.sampled_from([*BODY, *PARTLY]))}
        case "sum-of-changes":
            return {"how": how, "with": draw(st.permutations(changed))[:1]}
    return {"how": how, "with": draw(st.permutations(alike))[:2]}


@st.composite
def _blocks(draw: Draw, chance: bool) -> list[Stage]:
    """Draw rounds of adapters, each folded into the base."""
    standing: dict[str, Keys] = {}
    attached = draw(_attached(Around(standing, True, "t5", 2, chance), surely=True))
    until = {"updates": draw(st.integers(1, 2))}
    last = {"merge": True} if all(map(_merges, standing.values())) else {"drop": True}
    return [
        {"name": "round", **attached, "train": "adapter | head", "rate": 2e-3, "until": until},
        {"name": "fold", **last, "train": draw(st.sampled_from(["head", "norm"])), "rate": 1e-3, "until": until},
    ]
