"""Stages that learn something of their own: the body carries over, each task has its head."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import tiny
from alloytune import run
from alloytune.build.data import build_data_settings, prepare_others
from alloytune.build.session import Session, build_session
from alloytune.data.prepare import prepare
from alloytune.errors import Interrupted
from alloytune.estimate import estimate
from alloytune.finish import _results
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.read import read_recipe
from alloytune.record.folder import RunFolder
from alloytune.report.card import model_card
from alloytune.report.tables import stages_table
from alloytune.train.moving import Moving
from alloytune.watch import Watcher
from flows.test_pace import carry_out_stages
from flows.test_resume import weights

START = """
model: {model}
data: {{train: table.csv, split: {{validation: 20%, test: 20%}}}}
seed: 3
batch: 8
checkpoint: 2 updates
stages:
"""
DOMAIN = "task: language_modelling, data: {train: texts.csv, split: {validation: 20%}}"
STAGES = f"""
  - {{name: domain, {DOMAIN}, train: all, rate: 2e-3, until: {{updates: 6}}, evaluate: 3 updates}}
  - {{name: labels, attach: {{lora: {{rank: 2}}}}, train: adapter | head, rate: 2e-3, until: {{updates: 5}}}}
  - {{name: again, {DOMAIN}, merge: true, attach: {{lora: {{rank: 2}}}}, train: adapter, rate: 2e-3,
     until: {{updates: 5}}, accept: {{gain: 9, against: best}}, otherwise: {{retry: {{times: 1}}}}}}
  - {{name: own, task: language_modelling, merge: true, train: "layers[-1:] | name('*predictions*')", rate: 2e-3,
     until: {{updates: 4}}, keep: last}}
  - {{name: last, train: all, rate: 2e-3, until: {{updates: 5}}, state: reset, keep: last,
     combine: {{how: interpolate, with: [domain, last], weight: 0.5}}}}
"""


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


def write_recipe(model: Path, stages: str) -> Path:
    tiny.make_table(100).write_csv("table.csv")
    tiny.make_table(60, seed=1).select("text").write_csv("texts.csv")
    Path("recipe.yaml").write_text(START.format(model=model) + stages)
    return Path("recipe.yaml")


class Moves(Watcher):
    """Notes under which head each stage trains, and which of all stored weights it changes."""

    def __init__(self, *others: str) -> None:
        self.others = others
        self.heads: dict[str, str] = {}
        self.changed: dict[str, set[str]] = {}

    def on_model(self, session: Session) -> None:
        self.session, self.state = session, session.state
        self.before = self.everything()

    def everything(self) -> dict[str, torch.Tensor]:
        heads = self.state.heads
        names = {heads.stored_name(name) for name in named_weights(self.state.model)}
        others = {f"{key}:{name}" for key in self.others for name in named_weights(heads._heads[key].model)}
        return heads.copy(names | others | set(named_weights(heads._heads[""].model)))

    def on_stage(self, number: int, stage: object, moving: Moving, *_: object) -> None:
        self.heads[stage.name] = self.state.heads.current  # type: ignore[attr-defined]

    def on_stage_end(self, number: int, result: object) -> None:
        now = self.everything()
        same = {name for name in now.keys() & self.before.keys() if torch.equal(now[name], self.before[name])}
        self.changed[result["name"]] = set(now) - same  # type: ignore[index]
        self.before = now

    def on_finish(self, doing: str) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def alone(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Moves]:
    """Carry out STAGES without a stop; give the folder of recipe and run, and what moved."""
    folder, moves = tmp_path_factory.mktemp("alone"), Moves("domain", "own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        read = read_recipe(str(write_recipe(bert, STAGES)))
        with pytest.raises(Interrupted):
            run.start(read, folder / "run", moves)
    return folder, moves


@pytest.mark.slow
def test_weights_are_found_whatever_the_model_in_the_middle_calls_them(bert: Path) -> None:
    """An encoder by itself has no prefix in the names of its weights, the same under another head has one."""
    tiny.make_table(100).select(query="text", document=pl.col("text") + " again").write_csv("table.csv")
    tiny.make_table(60, seed=1).select("text").write_csv("texts.csv")
    stages = f"""
  - {{name: first, {DOMAIN}, train: "layers[0]", rate: 2e-3, until: {{updates: 2}}}}
  - {{name: second, {DOMAIN}, train: "top(weight_change, 25%)", score: {{after: first}},
     rate: 2e-3, until: {{updates: 2}}}}
  - {{name: last, train: all, rate: 2e-3, until: {{updates: 2}}}}
"""
    Path("recipe.yaml").write_text(START.format(model=bert).replace("seed: 3", "seed: 3\ntask: embedding") + stages)
    run.start(read_recipe("recipe.yaml"), Path("run"), Watcher())
    changes = json.loads(Path("run/stages/02-second/measures/state.json").read_text())["scores"]["weight_change"]
    moved = {name for name, change in changes.items() if change > 0}
    assert moved
    assert moved == {name for name in changes if ".layer.0." in name}


def test_the_body_carries_over_and_each_task_has_its_head(alone: tuple[Path, Moves]) -> None:
    folder, moves = alone
    assert moves.heads == {"domain": "domain", "labels": "", "again": "domain", "own": "own", "last": ""}
    body = {name for name in moves.before if name.startswith("bert.") and "pooler" not in name}
    head, domain = {"classifier.weight", "classifier.bias"}, "domain:cls.predictions.transform.dense.weight"
    assert body <= moves.changed["domain"]
    assert domain in moves.changed["domain"]
    assert not moves.changed["domain"] & head
    assert head <= moves.changed["labels"]
    assert domain not in moves.changed["labels"]
    assert moves.changed["again"] == set()  # rolled back, to the head and the adapters of before
    assert {name for name in moves.changed["own"] if "layer.0" in name and "lora" not in name} == {
        name for name in body if "layer.0" in name and name.endswith(".weight") and "LayerNorm" not in name
    }  # merged
    assert "own:cls.predictions.transform.dense.weight" in moves.changed["own"]
    assert domain not in moves.changed["own"]
    assert head <= moves.changed["last"]
    results = [RunFolder(folder / "run").stage(n, name).result() for n, name in enumerate(moves.heads)]
    kinds = [set(result["scores"]["values"]) for result in results]  # type: ignore[index]
    assert ["perplexity" in kind for kind in kinds] == [True, False, True, True, False]
    assert results[2]["decision"] == "rolled back"  # type: ignore[index]
    shown = _results(RunFolder(folder / "run"), moves.session)
    assert [stage.get("learns") for stage in shown["stages"]] == [
        "language_modelling",
        None,
        "language_modelling",
        "language_modelling",
        None,
    ]
    assert shown["beside"]["domain"]["rows"] == {"train": 48, "validation": 12, "test": 0}
    card = model_card(shown, "transformers")
    assert re.search(r"\| domain \|.*\|  \|  \| kept \(loss [\d.]+  perplexity", card)
    assert stages_table(shown).row_count == 6
    assert sorted(path.name for path in (folder / "run/data").iterdir() if path.is_dir()) == ["domain"]


def test_ended_and_gone_on_in_the_same_bytes(alone: tuple[Path, Moves], tmp_path: Path) -> None:
    whole, ended = alone[0] / "run", tmp_path / "ended"
    for update in (5, 9, 11, None):  # within the first stage, the rolled back one, and its second try
        carry_out_stages(alone[0] / "recipe.yaml", ended, update)
    one, two = weights(whole), weights(ended)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    for number, name in enumerate(("domain", "labels", "again", "own", "last")):
        assert scores(whole, number, name) == scores(ended, number, name)
    assert any(name.endswith("domain:cls.predictions.bias") for name in one)


def scores(folder: Path, number: int, name: str) -> object:
    result = RunFolder(folder).stage(number, name).result()
    assert result is not None
    return result["scores"], result["change"]


def test_a_model_without_a_head_shares_its_body_too(bert: Path, tmp_path: Path) -> None:
    """AutoModel names its weights without `bert.`; checkpoints keep to one name for each."""
    pairs = [{"query": f"{n} book", "document": f"the {n} was good"} for n in range(60)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    near = "task: embedding, data: {train: pairs.jsonl, near_duplicates: false}"
    recipe = write_recipe(
        bert,
        f"\n  - {{name: near, {near}, train: 'layers[-1:]', rate: 1e-3, until: {{updates: 3}}, keep: last}}"
        "\n  - {name: labels, train: head, rate: 1e-3, until: {updates: 3}, keep: last}\n",
    )
    moves = Spy()
    with pytest.raises(Interrupted):
        run.start(read_recipe(str(recipe)), tmp_path / "run", moves)
    saved = load_file(tmp_path / "run/stages/02-labels/checkpoint/weights.safetensors")
    moved = {name for name in saved if name.startswith("bert.encoder")}
    assert {name.split(".")[3] for name in moved} == {"1"}
    final = copy_weights(moves.state.model, moved)
    pretrained = load_file(bert / "model.safetensors")
    for name in moved:
        assert torch.equal(final[name], saved[name])
    assert not torch.equal(
        final["bert.encoder.layer.1.output.dense.weight"], pretrained["bert.encoder.layer.1.output.dense.weight"]
    )


VIEWS = """
  - {{name: both, attach: {{lora: {{rank: 2, on: "layers[-1:] & (attention | mlp)"}}}}, train: all | adapter,
     rate: 2e-3, until: {{updates: 7}}, evaluate: 3 updates, {more}
     joint: {{mode: views, of: "layers[-1:]", full: {full}, partial: {partial}, adapter: {adapter}, kl: {kl}}}}}
  - {{name: rest, train: adapter | head, rate: 2e-3, until: {{updates: 3}}, keep: last}}
"""
TEXTS = "{task: language_modelling, data: {train: texts.csv, split: {validation: 20%}}}"


def views(full: str = TEXTS, partial: str = "0.5", adapter: str = "1", kl: str = "0.3", more: str = "") -> str:
    return VIEWS.format(full=full, partial=partial, adapter=adapter, kl=kl, more=more)


@pytest.fixture(scope="module")
def in_views(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Moves]:
    """Carry out a joint stage whose base view reads other texts, micro-batches of 3, then a stage without it."""
    folder, moves = tmp_path_factory.mktemp("views"), Moves("both.full")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = write_recipe(bert, "\n".join([views().rstrip(), ""]))
        recipe.write_text(recipe.read_text().replace("batch: 8", "batch: 8\nmicro_batch: 3"))
        with pytest.raises(Interrupted):
            run.start(read_recipe(str(recipe)), folder / "run", moves)
    return folder, moves


def test_a_view_learns_something_of_its_own(in_views: tuple[Path, Moves]) -> None:
    """The base goes on reading texts under a head of its own; the stage is scored in the recipe's task."""
    folder, moves = in_views
    own = {name for name in moves.changed["both"] if name.startswith("both.full:")}
    assert "both.full:cls.predictions.transform.dense.weight" in own
    assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= moves.changed["both"]
    assert not {name for name in moves.changed["rest"] if name.startswith("both.full:")}
    assert not moves.state.heads.beside
    results = _results(RunFolder(folder / "run"), moves.session)
    assert results["beside"]["both.full"]["rows"] == {"train": 48, "validation": 12, "test": 0}
    assert [set(stage["scores"]["values"]) & {"macro_f1", "perplexity"} for stage in results["stages"]] == [
        {"macro_f1"},
        {"macro_f1"},
    ]
    assert (folder / "run/data/both.full/train.parquet").exists()
    assert "beside" not in (folder / "run/stages/02-rest/turns.jsonl").read_text()
    turns = (folder / "run/stages/01-both/turns.jsonl").read_text()
    assert "beside.both:full.cls.predictions.bias" in turns


def test_views_of_their_own_end_in_the_same_bytes(in_views: tuple[Path, Moves], tmp_path: Path) -> None:
    whole, ended = in_views[0] / "run", tmp_path / "ended"
    for update in (3, 4, 2, None):
        carry_out_stages(in_views[0] / "recipe.yaml", ended, update)
    one, two = weights(whole), weights(ended)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert any("both.full:cls.predictions.bias" in name for name in one)
    assert scores(whole, 0, "both") == scores(ended, 0, "both")


def test_the_cost_of_views_of_their_own(bert: Path) -> None:
    """All three views are counted, on both batches."""
    read = read_recipe(str(write_recipe(bert, views(partial="1"))))
    dataset = prepare(build_data_settings(read.recipe))
    found = estimate(build_session(read.recipe, dataset, prepare_others(read.recipe)))
    assert 1.5 < found.stages[0].flops_share < 4
    assert found.stages[1].flops_share < 1


def test_a_rolled_back_stage_leaves_no_view_behind(bert: Path, tmp_path: Path) -> None:
    """Tried twice and given up: the model, its heads and adapters are those of before."""
    more = "accept: {gain: 9}, otherwise: {retry: {times: 1}},"
    stages = views(more=more).replace("train: adapter | head", "train: head")
    recipe, moves = write_recipe(bert, stages), Moves("both.full")
    with pytest.raises(Interrupted):
        run.start(read_recipe(str(recipe)), tmp_path / "run", moves)
    assert moves.changed["both"] == set()
    assert moves.changed["rest"] == {
        "classifier.weight",
        "classifier.bias",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    assert not moves.state.heads.beside
    assert not moves.state.attached


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "embedding"])
def test_a_run_that_ends_with_views_is_saved_as_any(tmp_path: Path, kind: str) -> None:
    """Output layers apart, tied to the body, and a main model that is the body: what is saved loads, without the view's
    head."""
    saves = {"llama": tiny.save_llama, "gpt2": tiny.save_gpt2, "embedding": tiny.save_bert}
    recipe = write_recipe(saves[kind](tmp_path / "model"), views(kl="0").rpartition("  - {name: rest")[0])
    if kind == "embedding":
        pairs = [{"query": f"{n} book", "document": f"the {n} was good"} for n in range(60)]
        Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        data = "task: embedding\ndata: {train: pairs.jsonl, near_duplicates: false}"
        recipe.write_text(re.sub(r"(?m)^data: .*$", data, recipe.read_text()).replace("partial: 0.5", "partial: 1"))
    run.start(read_recipe(str(recipe)), tmp_path / "run", Watcher())
    results = RunFolder(tmp_path / "run").read("results.json")
    assert max(results["reload_difference"].values()) < 1e-3
    assert results["beside"]["both.full"]["rows"]["train"] == 48
    saved = [name for path in (tmp_path / "run").glob("*/*.safetensors") for name in load_file(path)]
    assert saved
    assert not [name for name in saved if "beside" in name]


def test_micro_batches_change_nothing_in_views_of_their_own(bert: Path, tmp_path: Path) -> None:
    steady = "dropout: 0, keep: last, optimizer: {sgd: {momentum: 0}}, clip: null,"
    ends = []
    for size in (8, 3):
        recipe = write_recipe(bert, views(more=steady))
        text = recipe.read_text().replace("batch: 8", f"batch: 8\nmicro_batch: {size}\nprecision: float32")
        recipe.write_text(text)
        carry_out_stages(recipe, tmp_path / str(size), None)
        ends.append(load_file(tmp_path / str(size) / "stages/01-both/checkpoint/weights.safetensors"))
    assert ends[0].keys() == ends[1].keys()
    apart = {name: float((ends[0][name] - ends[1][name]).abs().max()) for name in ends[0]}
    assert max(apart.values()) < 1e-6
    assert max(float(ends[0][name].abs().max()) for name in ends[0] if name.startswith("both.full:")) > 0


@pytest.mark.parametrize("word", ["validate", "gradnorm", pytest.param("uncertainty", marks=pytest.mark.slow)])
def test_found_weights_go_on_where_they_were(bert: Path, tmp_path: Path, word: str) -> None:
    """Ended between checkpoints and evaluations, again and again: the same weights, the same record."""
    mode = {"full": word, "adapter": word, "kl": "0"}
    if word == "validate":  # a base view that learns something else is weighed by what is left of its loss, too
        mode["full"] = TEXTS.replace("{task", "{weight: validate, task")
    recipe = write_recipe(bert, views(**mode))
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    carry_out_stages(recipe, whole, None)
    for update in (4, 2, None):
        carry_out_stages(recipe, ended, update)
    assert weights(whole) == weights(ended)
    file = "stages/01-both/scores.jsonl"
    rows = [json.loads(line) for line in (whole / file).read_text().splitlines()]
    assert (ended / file).read_text() == (whole / file).read_text()
    assert rows[-1]["weights"]["partial"] == 0.5
    assert rows[-1]["weights"]["full"] != rows[-1]["weights"]["adapter"]
    if word == "validate":
        assert rows[0]["weights"] == {"full": 1, "partial": 0.5, "adapter": 1}
        left = {view: rows[1]["view_losses"][view] / rows[0]["view_losses"][view] for view in ("full", "adapter")}
        assert rows[2]["weights"]["full"] == pytest.approx(2 * left["full"] / sum(left.values()), rel=1e-6)
        assert rows[0]["view_losses"]["adapter"] == pytest.approx(rows[0]["loss"], rel=1e-4)


def test_validation_finds_how_often_views_are_drawn(bert: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        bert,
        """
  - {name: drawn, attach: {lora: {rank: 2}}, train: all | adapter, rate: 2e-3, until: {updates: 6},
     evaluate: 2 updates, joint: {mode: sample, full: validate, adapter: validate}}
""",
    )
    carry_out_stages(recipe, tmp_path / "run", None)
    lines = (tmp_path / "run/stages/01-drawn/scores.jsonl").read_text().splitlines()
    found = [json.loads(line)["weights"] for line in lines]
    assert found[0] == {"full": 1, "adapter": 1}
    assert found[-1] != found[0]
    assert sum(found[-1].values()) == pytest.approx(2)


class Spy(Watcher):
    def on_model(self, session: Session) -> None:
        self.state = session.state

    def on_finish(self, doing: str) -> None:
        raise KeyboardInterrupt
