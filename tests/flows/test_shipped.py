"""Every shipped recipe does what its paper says: what moves and how much, where adapters stand, what is merged."""

import itertools
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from alloytune.build.plan import build_updates
from alloytune.build.session import Place
from alloytune.errors import InputError
from alloytune.models.combine import mean, mix
from alloytune.models.roles import Roles
from alloytune.models.weights import put_weights
from alloytune.rates import STARTS
from alloytune.recipe.read import read_recipe
from alloytune.recipe.shipped import shipped_names, shipped_text
from alloytune.recipe.types.choosing import Scaled
from alloytune.recipe.yaml_text import load
from alloytune.train.scores import Gradient, measure_gradients
from properties.carried_out import Weights, Witness, assert_same, begin, carry_out

LINEARS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "layer.0.output.dense")


class Ran:
    """A shipped recipe, its stages cut to a few updates, carried out on a small BERT; five updates are an epoch."""

    def __init__(self, name: str, model: Path, folder: Path, updates: int = 2) -> None:
        recipe, _ = load(shipped_text(name), name)
        self.stages = {stage["name"]: stage for stage in recipe["stages"] if "name" in stage}  # as shipped
        session = begin({**recipe, "batch": 8, "stages": short(recipe["stages"], updates)}, model)
        self.roles: Roles = session.state.roles()
        self.folder = folder
        self.seen: Witness = carry_out(session, folder)
        self.pretrained: Weights = self.seen.after["(pretrained)"]

    def moving(self, stage: str) -> set[str]:
        return set(self.seen.moves[stage].names)

    def rates(self, stage: str) -> dict[str, float]:
        return {name: group.rate for group in self.seen.moves[stage].groups for name in group.names}

    def after(self, stage: str) -> Weights:
        return self.seen.after[stage]

    def role(self, *names: str) -> set[str]:
        return set[str]().union(*(self.roles.members[name] for name in names))

    def matrices(self, *names: str) -> set[str]:
        return {name for name in self.role(*names) if self.pretrained[name].ndim > 1}

    def gradients(self, number: int, names: set[str]) -> dict[str, Gradient]:
        """Measure anew what the choices of a stage, counted from 0, were made by."""
        session = self.seen.session
        stage = session.recipe.stages[number]
        put_weights(session.state.model, self.seen.begun[stage.name])
        updates = build_updates(session, number, Place.MEASURING).after(0)
        loss, batches = session.task.summed_loss, stage.score.batches
        return measure_gradients(session.state.model, frozenset(names), updates, loss, session.machine, batches)

    def score(self, number: int, stage: str, score: str) -> dict[str, float]:
        file = self.folder / f"stages/{number:02}-{stage}/measures/state.json"
        found: dict[str, float] = json.loads(file.read_text())["scores"][score]
        return found

    def turns(self, stage: str) -> list[tuple[int, set[str]]]:
        """Give the first update of every turn of the first stage, and what moves in it."""
        rows = [json.loads(line) for line in (self.folder / f"stages/01-{stage}/turns.jsonl").read_text().splitlines()]
        return [(row["update"], set(row["moves"])) for row in rows]

    def heights(self, names: set[str]) -> list[int]:
        """Give the numbers of the layers that some weights are in, bottom first."""
        return [number for number, layer in enumerate(self.roles.stacks["layers"]) if names & layer]

    def changed(self, stage: str, since: Weights | None = None) -> set[str]:
        since, now = since or self.pretrained, self.after(stage)
        return {name for name, weight in now.items() if name in since and not torch.equal(weight, since[name])}


def short(stages: list[dict[str, Any]], updates: int) -> list[dict[str, Any]]:
    found = []
    for stage in stages:
        if "repeat" in stage:
            stage = {"repeat": {**stage["repeat"], "stages": short(stage["repeat"]["stages"], updates)}}
        elif "train" in stage:
            stage = stage | {"until": {"updates": updates}, "keep": "last"}
            stage |= {"accept": {"gain": -9}} if "accept" in stage else {}
            stage |= {"score": {**stage["score"], "batches": 2}} if "batches" in stage.get("score", {}) else {}
        found.append({key: value for key, value in stage.items() if key != "evaluate"})
    return found


@pytest.fixture(scope="module")
def ran(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    return cache(lambda name: Ran(name, bert, tmp_path_factory.mktemp(name) / "run"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a BERT of four layers, for what goes through layers."""
    return tiny.save_bert(tmp_path_factory.mktemp("deep"), layers=4)


@pytest.fixture(scope="module")
def ran_deep(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    return cache(lambda name: Ran(name, deep, tmp_path_factory.mktemp(name) / "run"))


def adapted(weights: Weights, adapter: str = "lora") -> set[str]:
    """Give the matrices beside which an adapter's first factor stands."""
    return {name.replace(f".lora_A.{adapter}", "") for name in weights if f"lora_A.{adapter}." in name}


def ranks(weights: Weights) -> set[int]:
    return {len(weight) for name, weight in weights.items() if ".lora_A." in name}


def assert_largest(it: Ran, stage: str, scores: Weights) -> None:
    """The elements that move are those of the largest scores."""
    moves = it.seen.moves[stage]
    chosen = torch.cat(
        [moves.masks.get(n, torch.full(score.shape, n in moves.names)).flatten() for n, score in scores.items()]
    )
    flat = torch.cat([score.flatten() for score in scores.values()])
    assert flat[chosen].min() >= flat[~chosen].max()


def is_adapter(name: str) -> bool:
    return any(word in name for word in ("lora_", "bottleneck", "prefix_", "adapter"))


def body_of(names: set[str]) -> set[str]:
    return {name for name in names if not is_adapter(name)}


def test_all_are_looked_at() -> None:
    """Those of joint objectives elsewhere."""
    text = Path(__file__).read_text()
    elsewhere = Path(__file__).with_name("test_joint.py").read_text()
    assert [name for name in shipped_names() if f'"{name}"' not in text + elsewhere] == []


@pytest.mark.parametrize("name", shipped_names())
def test_each_leaves_every_rate_to_the_model_and_the_data(name: str) -> None:
    for stage in read_recipe(name).recipe.stages:
        common = stage.rate.largest if isinstance(stage.rate, Scaled) else stage.rate
        assert {common, *stage.rates.values()} == {"auto"}, stage.name


@pytest.mark.parametrize("name", shipped_names())
def test_each_suits_a_decoder(name: str, llama: Path) -> None:
    recipe, _ = load(shipped_text(name), name)
    if name == "bitfit":
        with pytest.raises(InputError, match="'bias' matches nothing in this model"):
            begin({**recipe, "batch": 8}, llama)
    else:
        begin({**recipe, "batch": 8}, llama)


@pytest.mark.parametrize(("name", "role"), [("full", "all"), ("head", "head")])
def test_everything_or_the_head(ran: Callable[[str], Ran], name: str, role: str) -> None:
    it = ran(name)
    assert it.moving(name) == it.changed(name) == it.role(role)


def test_last_layers(ran_deep: Callable[[str], Ran]) -> None:
    it = ran_deep("last-layers")
    layers = it.roles.stacks["layers"]
    assert it.moving("partial") == it.changed("partial") == layers[2] | layers[3] | it.role("head")


def test_lora(ran: Callable[[str], Ran]) -> None:
    it = ran("lora")
    assert adapted(it.after("adapter")) == it.matrices("attention", "mlp")
    assert ranks(it.after("adapter")) == {8}
    assert it.changed("adapter") == body_of(it.moving("adapter")) == it.role("head")


def test_bottleneck(ran: Callable[[str], Ran]) -> None:
    """Behind attention and feed-forward, an eighth as wide as the model."""
    it = ran("bottleneck")
    shapes = {name: tuple(weight.shape) for name, weight in it.after("adapter").items() if name not in it.pretrained}
    downs = {name.partition(".bottleneck_down")[0]: shape for name, shape in shapes.items() if "down" in name}
    blocks = [f"bert.encoder.layer.{n}.{block}output.dense" for n in (0, 1) for block in ("attention.", "")]
    assert downs == dict.fromkeys(blocks, (2, 16))
    assert it.changed("adapter") == body_of(it.moving("adapter")) == it.role("head")


def test_hybrid(ran_deep: Callable[[str], Ran]) -> None:
    """Full, partial, adapter; the later two kept only if they gain."""
    it = ran_deep("hybrid")
    layers = it.roles.stacks["layers"]
    assert list(it.stages) == list(it.seen.moves) == ["full", "partial", "adapter"]
    assert it.moving("full") == it.role("all")
    assert it.moving("partial") == layers[2] | layers[3] | it.role("head")
    assert body_of(it.moving("adapter")) == it.role("head")
    assert adapted(it.after("adapter")) == it.matrices("attention", "mlp")
    assert ranks(it.after("adapter")) == {8}
    assert it.changed("adapter", it.after("partial")) == it.role("head")
    for stage in ("partial", "adapter"):
        assert (it.stages[stage]["accept"], it.stages[stage]["otherwise"]) == ({"gain": 0}, "rollback")


def test_dora(ran: Callable[[str], Ran]) -> None:
    it = ran("dora")
    lengths = {name for name in it.after("adapter") if "magnitude" in name}
    assert {len(it.after("adapter")[name]) for name in lengths if "intermediate" in name} == {32}
    assert len(lengths) == len(adapted(it.after("adapter"))) == 12
    assert it.changed("adapter") == it.role("head")


def test_adalora(ran: Callable[[str], Ran]) -> None:
    it = ran("adalora")
    values = {name: weight for name, weight in it.after("adapter").items() if ".lora_E." in name}
    assert {weight.shape for weight in values.values()} == {(12, 1)}
    assert len(values) == 12
    left = {name: int((weight != 0).sum()) for name, weight in values.items()}
    assert sum(left.values()) == 8 * 12  # what is left is spread as it matters
    assert len(set(left.values())) > 1
    assert it.changed("adapter") == it.role("head")


def test_bitfit(ran: Callable[[str], Ran]) -> None:
    it = ran("bitfit")
    assert it.changed("biases") - it.role("head") == {
        name for name in it.pretrained if name.endswith("bias") and name not in it.role("head") and "key" not in name
    } | {name for name in it.changed("biases") if "key.bias" in name}  # whose gradient is 0 but for rounding
    assert all("bias" in name for name in it.moving("biases") - it.role("head"))


def test_lp_ft(ran: Callable[[str], Ran]) -> None:
    it = ran("lp-ft")
    assert it.moving("head") == it.role("head") == it.changed("head")
    assert it.moving("full") == it.role("all")
    assert list(it.seen.moves) == ["head", "full"]
    assert set(it.rates("head").values()) == {STARTS["head"].rate}
    assert set(it.rates("full").values()) == {STARTS["full"].rate}  # no pretrained weight has moved before
    assert STARTS["full"].rate < STARTS["head"].rate


@pytest.mark.parametrize("name", ["hybrid-reversed", "lora-merge-full"])
def test_adapter_first(ran_deep: Callable[[str], Ran], name: str) -> None:
    """What comes after the adapter trains at 0.3 of its usual rate, and is kept only if it gains."""
    it = ran_deep(name)
    assert body_of(it.moving("adapter")) == it.role("head")
    second = "partial" if name == "hybrid-reversed" else "full"
    assert not any(is_adapter(name) for name in it.after(second))
    start = it.seen.begun[second]
    merged = {name for name, weight in it.pretrained.items() if not torch.equal(weight, start[name])}
    assert merged - it.role("head") == adapted(it.after("adapter"))
    if second == "partial":
        layers = it.roles.stacks["layers"]
        assert it.moving("partial") == layers[2] | layers[3] | it.role("head")
    assert it.moving("full") == it.role("all")
    gain = 0 if second == "partial" else "0.5 SE"
    for number, stage in enumerate(list(it.stages)[1:], 1):
        assert set(it.rates(stage).values()) == {0.3 * STARTS["full"].rate}  # half of the layers count as full
        assert it.stages[stage]["accept"] == {"gain": gain}
        assert it.seen.session.recipe.stages[number].state == "reset"


def test_surgical(ran: Callable[[str], Ran]) -> None:
    it = ran("surgical")
    for number, stage in ((1, "full"), (2, "again-1")):
        body = it.role("all") - it.role("head")
        scores = {name: value for name, value in it.score(number, stage, "rgn").items() if name in body}
        rates, top = it.rates(stage), max(scores, key=lambda name: scores[name])
        assert len({rates[name] for name in body}) > 15
        assert rates[top] == STARTS["scaled"].rate
        assert all(rates[name] == pytest.approx(rates[top] * scores[name] / scores[top]) for name in scores)
    assert it.score(1, "full", "rgn") != it.score(2, "again-1", "rgn")


def test_spectrum(ran_deep: Callable[[str], Ran]) -> None:
    it = ran_deep("spectrum")
    scores = it.score(1, "spectrum", "spectral_snr")
    chosen = it.moving("spectrum") - it.role("head")
    for kind in ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down"):
        matrices = {name for name in it.role(kind) if name in scores}
        assert len(matrices) == 4
        assert chosen & it.role(kind) == {max(matrices, key=lambda name: scores[name])}
    assert len(chosen) == 6


def test_child_tuning(ran: Callable[[str], Ran]) -> None:
    it = ran("child-tuning")
    moves = it.seen.moves["child"]
    layers = it.role("layers")
    total = sum(it.pretrained[name].numel() for name in layers)
    chosen = {n: moves.masks.get(n, torch.ones(it.pretrained[n].shape)) for n in moves.names & layers}
    assert sum(int(mask.sum()) for mask in chosen.values()) == pytest.approx(0.3 * total, abs=1)
    assert set(moves.masks) <= layers
    assert moves.names - layers == it.role("all") - layers
    assert_largest(it, "child", {name: found.mean_square for name, found in it.gradients(0, layers).items()})
    changed = sum(int((it.after("child")[n] != it.pretrained[n]).sum()) for n in layers)
    assert 0.25 * total < changed <= 0.3 * total + 1


def test_relora(ran: Callable[[str], Ran]) -> None:
    it = ran("relora")
    query = "bert.encoder.layer.0.attention.self.query.weight"
    rounds = ("first", "again-1", "again-2", "again-3")
    assert it.moving("start") == it.role("all")
    assert all(body_of(it.moving(stage)) == it.role("norm", "embeddings", "head") for stage in rounds)
    bases = [it.after(stage)[query] for stage in ("start", *rounds)]
    assert torch.equal(bases[0], bases[1])  # the first round is folded in when the second begins
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(bases[1:]))
    lefts = [it.after(stage)[query.replace("weight", "lora_A.lora.weight")] for stage in rounds]
    assert all((one - other).abs().max() > 0.01 for one, other in itertools.pairwise(lefts))
    for stage in rounds:  # up from nothing anew, then down to it
        schedule = it.seen.plans[stage].schedule
        assert schedule(0) < schedule(0.03) < schedule(0.06) == 1
        assert [schedule(0.53), schedule(1)] == pytest.approx([0.5, 0])
    assert {stage.state for stage in it.seen.session.recipe.stages} == {"reset"}


def test_chain_of_lora(ran: Callable[[str], Ran]) -> None:
    it = ran("chain-of-lora")
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert all(body_of(it.moving(stage)) == it.role("head") for stage in ("first", "link-1", "link-2"))
    assert it.after("first")[query].equal(it.pretrained[query])
    changes = [it.after(stage)[query].double() - it.pretrained[query].double() for stage in ("link-1", "link-2")]
    values = [torch.linalg.svdvals(change) for change in changes]
    assert values[0][8] < 1e-4 * values[0][0]  # one link has rank 8, two have more
    assert values[1][8] > 1e-3 * values[1][0]


def test_long_lora(ran: Callable[[str], Ran]) -> None:
    it = ran("long-lora")
    assert adapted(it.after("adapter")) == {n for n in it.role("attention") if n.endswith("weight") and "Norm" not in n}
    assert body_of(it.moving("adapter")) == it.role("norm", "embeddings", "head")


def test_rosa(ran: Callable[[str], Ran]) -> None:
    it = ran("rosa")
    assert body_of(it.moving("warm")) == it.role("head")
    matrices = adapted(it.after("warm"))
    masks = it.seen.moves["both"].masks
    total = sum(it.pretrained[name].numel() for name in matrices)
    assert set(masks) <= matrices
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.006 * total)
    moved = sum(int((it.after("both")[name] != it.pretrained[name]).sum()) for name in matrices)
    assert 0 < moved <= round(0.006 * total)
    assert_largest(it, "both", {name: found.mean.abs() for name, found in it.gradients(1, matrices).items()})
    assert any(is_adapter(name) for name in it.changed("both", it.after("warm")))


def test_hybrid_lora(ran: Callable[[str], Ran]) -> None:
    it = ran("hybrid-lora")
    full, low = body_of(it.moving("hybrid")) - it.role("head"), adapted(it.after("hybrid"))
    matrices = it.matrices("attention", "mlp")
    scores = it.score(1, "hybrid", "lowrank_misfit")
    assert full | low == matrices
    assert not full & low
    assert min(scores[name] for name in full) >= max(scores[name] for name in low)
    share = sum(it.pretrained[name].numel() for name in full) / sum(it.pretrained[name].numel() for name in matrices)
    assert 0.05 < share < 0.15


def test_aletheia(ran: Callable[[str], Ran]) -> None:
    it = ran("aletheia")
    scores, layers = it.score(1, "adapter", "gradient"), it.roles.stacks["layers"]

    def mean(layer: frozenset[str]) -> float:
        inside = [name for name in scores if name in layer]
        sizes = [it.pretrained[name].numel() for name in inside]
        return sum(scores[name] * size for name, size in zip(inside, sizes, strict=True)) / sum(sizes)

    better = max(layers, key=mean)
    assert adapted(it.after("adapter")) == {
        name for name in better & it.role("attention", "mlp") if it.pretrained[name].ndim > 1
    }
    assert it.changed("adapter") == it.role("head")


def test_wise(ran: Callable[[str], Ran]) -> None:
    it = ran("wise")
    (share,) = it.seen.results["wise"]["combined"].values()
    expected = mix(it.after("head"), [it.after("full")], [share])
    assert all(torch.equal(weight, expected[name]) for name, weight in it.after("wise").items())
    values = {name: result["scores"]["values"]["macro_f1"] for name, result in it.seen.results.items()}
    assert values["wise"] >= max(values["head"], values["full"])


def test_soup(ran: Callable[[str], Ran]) -> None:
    it = ran("soup")
    for number in (1, 2, 3):
        assert it.changed(f"back-{number}", it.after("head")) == set()
        assert it.moving(f"full-{number}") == it.role("all")
    assert len(it.changed("full-1", it.after("full-2"))) > 20
    members = [it.after(name) for name in it.seen.results["soup"]["combined"]]
    assert_same(it.after("soup"), mean(members))
    values = {name: result["scores"]["values"]["macro_f1"] for name, result in it.seen.results.items()}
    assert values["soup"] >= max(values[f"full-{number}"] for number in (1, 2, 3))


def test_reset_half(ran_deep: Callable[[str], Ran]) -> None:
    it = ran_deep("reset-half")
    for role in ("attention", "mlp", "norm"):
        inside = it.role(role) & it.role("layers")
        count = {
            stage: sum(it.pretrained[n].numel() for n in inside & it.changed(stage)) for stage in ("full", "reset")
        }
        assert count["reset"] == pytest.approx(count["full"] / 2, rel=0.1)
    assert all(it.after("reset")[n].equal(it.after("full")[n]) for n in it.changed("reset") | it.role("head"))


def test_r_drop(ran: Callable[[str], Ran]) -> None:
    it = ran("r-drop")
    assert it.moving("full") == it.role("all")

    def first_loss(name: str) -> float:
        rows = (ran(name).folder / "stages/01-full/steps.jsonl").read_text()
        return float(json.loads(rows.splitlines()[0])["loss"])

    assert first_loss("r-drop") != first_loss("full")
    assert (it.stages["full"]["r_drop"], it.stages["full"]["dropout"]) == (1, 0.1)


def test_prelora_like(ran: Callable[[str], Ran]) -> None:
    it = ran("prelora-like")
    high, low = (adapted(it.after("adapter"), name) for name in ("high", "low"))
    changes = it.score(2, "adapter", "weight_change")
    assert high | low == it.matrices("attention", "mlp")
    assert not high & low
    assert it.moving("full") == it.role("all")
    assert min(changes[name] for name in high) >= max(changes[name] for name in low)
    found = {name.split(".")[-2]: len(w) for name, w in it.after("adapter").items() if "lora_A" in name}
    assert found == {"high": 16, "low": 4}


def test_heft_like(ran: Callable[[str], Ran]) -> None:
    it = ran("heft-like")
    assert not adapted(it.after("fine"))
    assert it.changed("fine") - it.role("head") == adapted(it.after("coarse"))
    new = {name for name in it.moving("fine") if name not in it.pretrained}
    assert {name.partition(".output.dense.")[0] for name in new} == {f"bert.encoder.layer.{n}" for n in (0, 1)}


def test_lisa(deep: Path, tmp_path: Path) -> None:
    it = Ran("lisa", deep, tmp_path / "run", updates=41)
    turns, always = it.turns("lisa"), it.role("embeddings", "head")
    assert [update for update, _ in turns] == [1, 21, 41]
    assert all(always < moves < always | it.role("layers") for _, moves in turns)
    drawn = [it.heights(moves) for _, moves in turns]
    assert {len(layers) for layers in drawn} == {2}
    assert len(set(map(tuple, drawn))) > 1
    assert it.moving("lisa") == it.role("layers") | always


def test_badam(deep: Path, tmp_path: Path) -> None:
    it = Ran("badam", deep, tmp_path / "run", updates=6)
    turns, layers = it.turns("blocks"), it.roles.stacks["layers"]
    assert [update for update, _ in turns] == [1, 2, 3, 4, 5, 6]
    assert [moves for _, moves in turns] == [layers[number % 4] | it.role("head") for number in range(6)]


def test_half(deep: Path, tmp_path: Path) -> None:
    it = Ran("half", deep, tmp_path / "run", updates=11)
    turns = it.turns("half")
    assert [update for update, _ in turns] == [1, 6, 11]
    assert len({frozenset(moves) for _, moves in turns}) == 3
    for _, moves in turns:
        assert moves - it.role("layers") == it.role("embeddings", "head")
        for role in ("attention", "mlp", "norm"):
            kind = it.role(role) & it.role("layers")
            chosen, whole = (sum(it.pretrained[name].numel() for name in names) for names in (moves & kind, kind))
            assert chosen == pytest.approx(whole / 2, rel=0.1)


def test_gradual_unfreezing(deep: Path, tmp_path: Path) -> None:
    it = Ran("gradual-unfreezing", deep, tmp_path / "run", updates=12)
    turns = it.turns("unfreezing")
    assert [update for update, _ in turns] == [1, 3, 5, 7, 9]  # half of an epoch of five updates is two
    assert [it.heights(moves) for _, moves in turns] == [[3], [2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert [it.role("embeddings") <= moves for _, moves in turns] == [False] * 4 + [True]
    assert all(it.role("head") <= moves for _, moves in turns)
    rates, layers = it.rates("unfreezing"), it.roles.stacks["layers"]
    highest = [max(rates[name] for name in layer) for layer in (it.role("embeddings"), *layers)]
    assert [lower / upper for lower, upper in itertools.pairwise(highest)] == pytest.approx([0.8] * 4)
    assert {rates[name] for name in it.role("head")} == {STARTS["new head"].rate}
    steps = (it.folder / "stages/01-unfreezing/steps.jsonl").read_text().splitlines()
    course = [json.loads(line)["rate"] for line in steps]
    assert course.index(max(course)) == 1  # a steep rise over a tenth, then a long way down
    assert all(later < earlier for earlier, later in itertools.pairwise(course[1:]))


def test_autofreeze(deep: Path, tmp_path: Path) -> None:
    it = Ran("autofreeze", deep, tmp_path / "run", updates=20)
    turns = it.turns("full")
    assert [update for update, _ in turns] == list(range(1, 21, 2))
    assert turns[0][1] == it.moving("full") == it.role("all")
    assert all(later <= earlier for (_, earlier), (_, later) in itertools.pairwise(turns))
    resting = it.role("all") - turns[-1][1]
    assert it.heights(resting)
    assert it.heights(resting) == list(range(len(it.heights(resting))))  # from the bottom up
    assert it.role("head") | it.roles.stacks["layers"][-1] <= turns[-1][1]


def test_lt_sft(ran: Callable[[str], Ran]) -> None:
    it = ran("lt-sft")
    assert it.moving("full") == it.role("all")
    assert it.changed("back") == set()
    layers = sorted(it.role("layers"))
    change = torch.cat([(it.after("full")[name] - it.pretrained[name]).abs().flatten() for name in layers])
    moved = torch.cat([(it.after("sparse")[name] != it.pretrained[name]).flatten() for name in layers])
    masks = it.seen.moves["sparse"].masks
    chosen = torch.cat([masks.get(name, torch.zeros_like(it.pretrained[name]).bool()).flatten() for name in layers])
    assert int(chosen.sum()) == round(0.08 * len(change))
    assert change[chosen].min() >= change[~chosen].max()
    assert not (moved & ~chosen).any()
    assert int(moved.sum()) > 0.9 * int(chosen.sum())
    assert it.changed("sparse") - it.role("layers") == it.role("head")


@pytest.mark.parametrize("name", ["mam-like", "unipelt-like"])
def test_several_kinds_at_once(ran: Callable[[str], Ran], name: str) -> None:
    it = ran(name)
    after = it.after("adapter")
    new = {name: tuple(weight.shape) for name, weight in after.items() if name not in it.pretrained}
    length, width = (30, 8) if name == "mam-like" else (10, 1)
    source = 32 if name == "mam-like" else 16  # beside the layer on its input, or on its output
    prefixes = {path: shape for path, shape in new.items() if "prefix_key" in path or "prefix_value" in path}
    assert (len(prefixes), set(prefixes.values())) == (4, {(length, 16)})
    downs = [shape for path, shape in new.items() if path.endswith("bottleneck_down.bottleneck.weight")]
    assert downs == [(width, source)] * 2
    low = {path.rpartition(".")[0].split(".")[-2] for path in adapted(after)}
    gates = [path for path in new if "_gate" in path]
    assert (low, len(gates)) == ((set(), 0) if name == "mam-like" else ({"self"}, 4))
    assert len(adapted(after)) == (0 if name == "mam-like" else 4)
    assert it.changed("adapter") == body_of(it.moving("adapter")) == it.role("head")


def test_adapt_then_tune(ran: Callable[[str], Ran]) -> None:
    it = ran("adapt-then-tune")
    adapted, tuned = it.after("adapt"), it.after("tune")
    body = it.role("embeddings", "layers")
    lm_head = it.moving("adapt") - body
    assert body < it.moving("adapt")
    assert all(name.startswith("cls.") for name in lm_head)
    assert body <= it.changed("adapt")
    assert it.moving("tune") == it.role("all")
    assert not lm_head & tuned.keys()
    began = it.seen.begun["tune"]
    assert all(torch.equal(began[name], adapted[name]) for name in body)
    assert all(torch.equal(began[name], it.pretrained[name]) for name in it.role("head"))
    assert it.role("all") == it.changed("tune", began)
