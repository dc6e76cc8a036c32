"""Joint objectives through whole runs: the staged recipe as the limiting case, resumes, micro-batches, the record."""

import json
from collections import Counter
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from rich.console import Console

import tiny
from alloytune.build.session import build_session
from alloytune.data.prepare import prepare
from alloytune.data.settings import DataSettings, SplitSettings
from alloytune.errors import InputError
from alloytune.rates import STARTS
from alloytune.recipe.read import recipe_from
from alloytune.recipe.shipped import shipped_text
from alloytune.recipe.yaml_text import load
from alloytune.record.folder import RunFolder
from alloytune.report.tables import movement_table, run_report
from alloytune.run import rehearse
from architectures import ARCHITECTURES
from flows.test_resume import weights
from flows.test_shipped import short
from properties.carried_out import Witness, assert_same, begin, carry_out

FIXED = [0.3, 0.5, 0.8]  # alpha, beta, gamma
LORA = {"lora": {"rank": 2, "on": "layers[-1:] & (attention | mlp)"}}
STEADY = {
    "rate": 2e-3,
    "schedule": "constant",
    "warmup": 0,
    "dropout": 0,
    "keep": "last",
    "clip": None,
    "cache": False,  # which would compute frozen layers in other batches
}


def joint_stage(mode: str, updates: int = 5, **more: Any) -> dict[str, Any]:
    joint = {"mode": mode, "full": 0.5, "partial": 1, "adapter": 2, "of": "layers[-1:]"}
    stage = {"name": "joint", "attach": LORA, "train": "all | adapter", "rate": 2e-3, "until": {"updates": updates}}
    return {**stage, "joint": joint, **more}


def ran(model: Path, folder: Path, *stages: dict[str, Any], stop: int | None = None, **settings: Any) -> Witness:
    recipe = {"batch": 8, "checkpoint": "2 updates", **settings, "stages": list(stages)}
    return carry_out(begin(recipe, model), folder, stop)


def rows_of_distinct_lengths() -> pl.DataFrame:
    """Make rows that a batch of all can hold in one order only."""
    texts = [" ".join([word, *tiny.PLAIN[:n], str(n)]) for n in range(12) for word in [("good", "bad")[n % 2]]]
    return pl.DataFrame({"text": texts, "label": [("good", "bad")[n % 2] for n in range(12)]})


@pytest.mark.parametrize("mode", ["update", "sample"])
def test_the_staged_recipe_is_the_case_in_which_weights_switch(tmp_path: Path, bert: Path, mode: str) -> None:
    """Full, then partial, then adapter, with the optimizer's memory carried on: the same bytes as one joint stage."""
    table = rows_of_distinct_lengths()
    weights_over_time = {
        "full": "1 until 3 updates, 0",
        "partial": "0 until 3 updates, 1 until 5 updates, 0",
        "adapter": "0 until 5 updates, 1",
    }
    joint = {
        **joint_stage(mode, updates=9, **STEADY, evaluate="9 updates"),
        "joint": {"mode": mode, "of": "layers[-1:]", **weights_over_time},
    }
    staged = [
        {"name": "full", "attach": LORA, "train": "all", "until": {"updates": 3}},
        {"name": "partial", "train": "layers[-1:] | head", "until": {"updates": 2}, "state": "keep"},
        {"name": "adapter", "train": "adapter | head", "until": {"updates": 4}, "state": "keep"},
    ]
    ends = []
    for name, stages in {"joint": [joint], "staged": [{**stage, **STEADY} for stage in staged]}.items():
        recipe = recipe_from({"model": str(bert), "batch": 10, "stages": stages})
        dataset = prepare(DataSettings(train=None, split=SplitSettings(0.2, 0.0), near_duplicates=False), table)
        session = build_session(recipe, dataset)
        rehearse(session)
        ends.append(carry_out(session, tmp_path / name).weights())
        start = session.pretrained_weights()
    assert_same(*ends)
    moved = {name for name, weight in ends[0].items() if name not in start or not torch.equal(weight, start[name])}
    assert {"bert.encoder.layer.0.output.dense.weight", "bert.encoder.layer.1.output.dense.weight"} <= moved
    assert any("lora_B" in name and ends[0][name].any() for name in moved)


@pytest.mark.parametrize("mode", ["update", "views", "sample", "route"])
def test_ended_and_gone_on_in_the_same_bytes(tmp_path: Path, bert: Path, mode: str) -> None:
    """Weights on a schedule, dropout, micro-batches; ended within draws and between checkpoints, again and again."""
    stage = joint_stage(mode, updates=8, evaluate="3 updates")
    more: dict[str, Any] = {"views": {"kl": 0.5, "over": "pretrained"}, "sample": {"every": "3 updates"}}.get(mode, {})
    stage["joint"] = {**stage["joint"], **more, "adapter": "0 until 25%, 0 -> 2 cosine"}
    first = {"name": "before", "train": "all", "rate": 2e-3, "until": {"updates": 1}}
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    ran(bert, alone, first, stage, micro_batch=3)
    for stop in (4, 3, 4):
        ran(bert, ended, first, stage, stop=stop, micro_batch=3)
    ran(bert, ended, first, stage, micro_batch=3)
    assert weights(ended) == weights(alone)
    for name in ("scores", "turns"):
        file = f"stages/02-joint/{name}.jsonl"
        assert (ended / file).read_text() == (alone / file).read_text()
    if mode == "sample":
        assert {row["view"] for row in rows(alone, "turns")} <= {"full", "partial", "adapter"}
    if mode == "route":
        assert 0 <= rows(alone, "scores")[-1]["routed"] <= 1


def rows(folder: Path, name: str, number: int = 2) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"stages/{number:02}-joint/{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", ["update", "views", "sample", "route"])
def test_micro_batches_change_nothing(tmp_path: Path, bert: Path, mode: str) -> None:
    stage = joint_stage(mode, **STEADY)
    if mode != "route":
        stage |= {"rate": 1e-2, "optimizer": {"sgd": {"momentum": 0.0}}}
    stage["joint"]["kl"] = 0.5 if mode == "views" else 0
    ends = [ran(bert, tmp_path / str(size), stage, micro_batch=size, precision="float32").weights() for size in (8, 3)]
    apart = torch.cat([(ends[0][name] - ends[1][name]).abs().flatten() for name in ends[0]])
    # AdamW makes steps of gradients that are rounding alone
    assert (apart.quantile(0.99) if mode == "route" else apart.max()) < 1e-6


def test_movement_is_recorded_and_follows_the_weights(tmp_path: Path, bert: Path) -> None:
    ends = {}
    for full in (0.1, 1.0):
        stage = joint_stage("update", **STEADY, evaluate="2 updates")
        stage["joint"] |= {"full": full, "partial": 1.0 - 0.9 * full}
        seen = ran(bert, tmp_path / str(full), stage)
        last = seen.results["joint"]["movement"]
        row, *_, final = rows(tmp_path / str(full), "scores", 1)
        assert last == final["movement"]
        assert row["movement"].keys() == {"full", "partial", "adapter", "head"}
        start, end = seen.begun["joint"], seen.weights()
        before, after = (torch.cat([w[n].flatten() for n in sorted(seen.session.state.head)]) for w in (start, end))
        expected = (after - before).norm() / before.norm()
        assert last["head"] == pytest.approx(float(expected), rel=1e-5)
        ends[full] = last
        shown = movement_table({"stages": [{"name": "plain"}, seen.results["joint"]]})
        assert shown is not None
        assert [column.header for column in shown.columns] == ["stage", "adapter", "full", "head", "partial"]
        assert [str(cell) for column in shown.columns[3:4] for cell in column.cells] == [f"{last['head']:.3%}"]
    assert ends[0.1]["full"] < 0.3 * ends[1.0]["full"]


def test_the_end_of_a_run_shows_the_movement(tmp_path: Path, bert: Path) -> None:
    result = ran(bert, tmp_path / "run", joint_stage("update", updates=1)).results["joint"]
    folder, shown = RunFolder(tmp_path / "run"), StringIO()
    recipe, start = {"metric": "macro_f1"}, folder.read("stages/start.json")
    results = {"recipe": recipe, "start": start, "stages": [result], "test": None, "predictions": []}
    folder.write("results.json", results)
    Console(file=shown, width=160).print(run_report(folder))
    assert all(f"{part} " in shown.getvalue() for part in result["movement"])
    assert all(f"{moved:.3%}" in shown.getvalue() for moved in result["movement"].values())


@pytest.mark.parametrize(
    ("mode", "lower", "upper", "more"),
    [
        ("update", 1, 1, {}),
        ("sample", 1, 1, {}),
        ("route", 1, 1, {}),
        ("views", 1, 2, {"partial": None, "of": None}),  # what gives the same in both runs once
        ("views", 2, 3, {}),  # the partial view sees a base of its own
    ],
)
def test_passes_of_an_update(
    tmp_path: Path, bert: Path, mode: str, lower: int, upper: int, more: dict[str, Any]
) -> None:
    stage = joint_stage(mode, updates=2)
    joint = {**stage["joint"], **more}
    stage["joint"] = {key: value for key, value in joint.items() if value is not None}
    session, passes = begin({"batch": 8, "stages": [stage]}, bert), Counter[int]()

    def count(number: int, module: torch.nn.Module, *_: object) -> None:
        passes[number] += module.training

    for number, layer in enumerate(session.state.model.bert.encoder.layer):
        layer.intermediate.dense.register_forward_hook(partial(count, number))
    carry_out(session, tmp_path / "run")
    assert passes == {0: 2 * lower, 1: 2 * upper}


def test_what_no_view_weighs_is_refused(bert: Path) -> None:
    wrong = [
        ({"full": 1, "adapter": 1}, "layers[-1:] | adapter | head", "mode", None),
        ({"partial": 1, "adapter": 1, "of": "layers[-1:]"}, "all | adapter", "joint", "nothing weighs"),
        ({"full": 1, "partial": 1, "adapter": 1, "of": "layers[0]"}, "layers[-1:] | adapter", "partial", "no partial"),
        ({"mode": "route", "full": 1, "adapter": 1}, "layers[0] | adapter", "mode", "no layer moves full"),
        ({"mode": "views", "full": 1, "adapter": 2}, "(all - head) | adapter", "joint", "moved by two of the views"),
        ({"mode": "views", "full": 1, "adapter": 2, "kl": 0.5}, "(all - head) | adapter", "mode", None),
        (
            {"mode": "views", "full": 1, "partial": 1, "of": "layers[-1:]", "adapter": 1, "over": "pretrained"},
            "all | adapter",
            "joint",
            None,
        ),
        ({"mode": "views", "full": 1, "adapter": "0 until 50%, 2"}, "(all - head) | adapter", "mode", None),
        (
            {"mode": "views", "full": 1, "partial": 5, "of": "layers[-1:]", "adapter": 1},
            "layers[-1:] | adapter | head",
            "joint",
            "full view is the partial one",
        ),
        (
            {"mode": "route", "full": 1, "partial": 7, "of": "embeddings", "adapter": 1},
            "all | adapter",
            "partial",
            "this prior decides nothing",
        ),
        ({"full": "1 until 1 updates, 0", "adapter": "0 until 80%, 1"}, "all | adapter", "joint", "from update 2 on"),
        ({"full": "1 until 1 epoch, 0", "adapter": "0 until 30 updates, 1"}, "all | adapter", "joint", "all weights"),
    ]
    for joint, train, path, message in wrong:
        stage = {**joint_stage("update"), "train": train, "joint": joint}
        if message is None:
            begin({"stages": [stage]}, bert)
            continue
        with pytest.raises(InputError, match=rf"stages\[0\]\.(joint\.)?{path}.*{message}"):
            begin({"stages": [stage]}, bert)
    with pytest.raises(InputError, match="pissa"):
        begin({"stages": [joint_stage("views", attach={"lora": {"pissa": True}})]}, bert)


def shipped(name: str, model: Path, folder: Path, updates: int = 4, **joint: Any) -> Witness:
    """Carry out a shipped recipe, cut short; `joint` replaces keys of its objective."""
    recipe, _ = load(shipped_text(name), name)
    stages = short(recipe["stages"], updates)
    stages[0] |= {"joint": stages[0]["joint"] | joint}
    return carry_out(begin({**recipe, "batch": 8, "stages": stages}, model), folder)


def by_part(seen: Witness) -> dict[str, set[str]]:
    """Give what moves in the only stage by its part of the objective."""
    groups = seen.moves["joint" if "joint" in seen.moves else "route"].groups
    return {part: {n for g in groups if g.part == part for n in g.names} for part in {str(g.part) for g in groups}}


def test_shipped_joint(tmp_path: Path) -> None:
    """The rest of the base at 0.3 of the rate, the top third at 1, adapters beside it alone; the head at its own."""
    deep = tiny.save_bert(tmp_path / "deep", layers=4)
    seen = shipped("joint", deep, tmp_path / "run")
    parts, layers = by_part(seen), seen.session.state.roles().stacks["layers"]
    rates = {name: group.rate for group in seen.moves["joint"].groups for name in group.names}
    assert parts["partial"] == layers[2] | layers[3]
    assert parts["full"] == set(rates) - parts["partial"] - parts["adapter"] - parts["head"]
    assert all(".layer.2." in name or ".layer.3." in name for name in parts["adapter"])
    full, partial, head = (rates[min(parts[part])] for part in ("full", "partial", "head"))
    assert (full / partial, head) == (pytest.approx(0.3), STARTS["new head"].rate)
    assert {rates[name] for name in parts["adapter"]}.isdisjoint({full, partial})


def test_shipped_joint_views(tmp_path: Path, bert: Path) -> None:
    """Without the adapter's loss the base moves the same way: what it learns does not lean on the adapter."""
    seen = shipped("joint-views", bert, tmp_path / "run")
    assert by_part(seen).keys() == {"full", "adapter", "head"}
    row = json.loads((tmp_path / "run/stages/01-joint/steps.jsonl").read_text().splitlines()[0])
    alone = shipped("joint", bert, tmp_path / "alone")
    first = json.loads((tmp_path / "alone/stages/01-joint/steps.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx(2 * first["loss"], rel=0.05)  # two views, alike while the adapter does nothing
    assert alone.session.state.attachments == seen.session.state.attachments
    shipped("joint-views", bert, tmp_path / "drawn", updates=1, kl=1000)
    drawn = json.loads((tmp_path / "drawn/stages/01-joint/steps.jsonl").read_text())
    assert drawn["loss"] > row["loss"] + 1e-4  # what lies between the views is dropout's alone
    (stage,) = seen.session.recipe.stages
    assert stage.joint is not None
    assert stage.joint.kl == 0.1


def test_shipped_joint_sample(tmp_path: Path, bert: Path) -> None:
    """One view at a time, for 20 updates; what is of no part of it keeps its bits."""
    seen = shipped("joint-sample", bert, tmp_path / "run", updates=21, partial=3)
    parts = by_part(seen)
    turns = rows(tmp_path / "run", "turns", 1)
    assert [turn["update"] for turn in turns] == [1, 21]
    moves = {"full": {"full", "partial", "head"}, "partial": {"partial", "head"}, "adapter": {"adapter", "head"}}
    for turn in turns:
        assert set(turn["moves"]) == {name for part in moves[turn["view"]] for name in parts.get(part, ())}
    assert len({turn["view"] for turn in turns}) > 1


def test_shipped_route(tmp_path: Path, bert: Path) -> None:
    """Every adapted layer is chosen for at every update; with such a prior both sides win somewhere."""
    seen = shipped("route", bert, tmp_path / "run", adapter=0.4)
    start, end = seen.begun["route"], seen.weights()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    adapted = {name.replace("lora_A.lora.", "") for name in start if "lora_A" in name}
    assert len(adapted) == 12
    assert 0 < seen.results["route"]["routed"] < 1
    assert moved & adapted
    assert any("lora_B" in name for name in moved)


@pytest.mark.parametrize(("kind", "weight"), [("bert", "validate"), ("gpt2", FIXED), ("bart", FIXED)])
def test_branches_trained_apart_and_summed(tmp_path: Path, kind: str, weight: str | list[float]) -> None:
    """The fifth reading: theta0 + alpha dF + beta dP + gamma dA, from one snapshot, the adapter folded in."""
    page = (Path(__file__).parents[2] / "docs/joint.md").read_text(encoding="utf-8")
    (text,) = [part for part in page.split("```yaml\n")[1:] if "sum-of-changes" in part]
    recipe, _ = load(text.partition("```")[0], "docs/joint.md")
    stages = short(recipe["stages"], 2)
    stages[2]["train"] = "layers[-1:] | head"  # of two layers
    stages[-1]["combine"]["weight"] = weight
    model = ARCHITECTURES[kind].save(tmp_path / kind)
    seen = carry_out(begin({**recipe, "batch": 8, "stages": stages}, model), tmp_path / "run")
    shares, start = seen.results["sum"]["combined"], seen.after["(pretrained)"]
    assert shares.keys() == {"full", "partial", "sum"}
    assert weight == "validate" or list(shares.values()) == weight
    for back in ("back", "back-again"):
        assert_same(seen.after[back], start)
    body = start.keys() - seen.session.state.head
    changes = {
        stage: {name: seen.after[stage][name].double() - start[name].double() for name in body}
        for stage in ("full", "partial", "sum")
    }
    changes["adapter"] = dict.fromkeys(body, torch.zeros(())) | of_adapter(seen.after["adapter"], kind == "gpt2")
    for branch in ("full", "partial", "adapter"):
        assert max(float(change.abs().max()) for change in changes[branch].values()) > 5e-5
    for name in body:
        parts = zip(shares.values(), ("full", "partial", "adapter"), strict=True)
        expected = sum((share * changes[branch][name] for share, branch in parts), torch.zeros(start[name].shape))
        assert torch.allclose(changes["sum"][name], expected, rtol=0, atol=2e-7), name


def of_adapter(weights: dict[str, torch.Tensor], transposed: bool) -> dict[str, torch.Tensor]:
    """Give what LoRA changes, B A times alpha / rank, which is 2 unless set, by the name of the matrix beside it."""
    pairs = {name: name.replace("lora_A", "lora_B") for name in weights if ".lora_A." in name}
    found = {a.replace(".lora_A.lora", ""): 2 * weights[b].double() @ weights[a].double() for a, b in pairs.items()}
    return {name: change.T if transposed else change for name, change in found.items()}
