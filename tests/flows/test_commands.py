"""Whole commands, as a user types them, on tiny models."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from rich.console import Console

import alloytune
import tiny
from alloytune.build.session import build_session
from alloytune.cli.main import console, main
from alloytune.data.store import load_splits
from alloytune.recipe.read import read_recipe, recipe_from
from alloytune.recipe.shipped import shipped_names
from alloytune.recipe.yaml_text import load
from alloytune.record.folder import RunFolder
from alloytune.report import tables
from alloytune.terminal import Terminal


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Answer]

HYBRID = """
model: {model}
data: {{train: table.csv, split: {{validation: 20%, test: 20%}}}}
seed: 5
batch: 8
stages:
  - name: full
    train: all
    rate: 3e-3
    until: {{epochs: 8}}
  - name: partial
    train: layers[-1:] | head
    rate: 1e-3
    until: {{epochs: 1}}
    accept: {{gain: 0.9}}
  - name: adapter
    attach: {{lora: {{rank: 2}}}}
    train: adapter | head
    rate: 3e-3
    until: {{epochs: 1}}
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `alloytune ...` in this process."""

    def run(*words: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["alloytune", *map(str, words)])
        monkeypatch.setattr(console, "width", 160)
        code = 0
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return run


@pytest.fixture
def place(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with a table and a recipe, and work in it."""
    tiny.make_table(150).write_csv(tmp_path / "table.csv")
    (tmp_path / "recipe.yaml").write_text(HYBRID.format(model=bert))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tuned(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a finished run."""
    full = {"name": "full", "train": "all", "rate": 3e-3, "until": {"epochs": 8}}
    recipe = {"batch": 8, "seed": 5, "stages": [full]}
    table = tiny.make_table(150)
    return alloytune.tune(table, str(bert), recipe, output=tmp_path_factory.mktemp("tuned") / "run").folder.path


@pytest.fixture
def finished(place: Path, tuned: Path) -> Path:
    """Give a folder with a finished run, and work in it."""
    (place / "run").symlink_to(tuned)
    return place


@pytest.mark.new_interpreter
def test_train_and_show(command: Command, place: Path) -> None:
    done = command("train", "recipe.yaml", "--output", "run")
    assert done.code == 0, done.err
    for words in (
        "stage 1: full",
        "kept",
        "rolled back",
        "needed macro_f1 +0.9 or more",
        "95 % interval",
        "alloytune predict",
    ):
        assert words in done.out

    results = json.loads((place / "run/results.json").read_text())
    assert [stage["decision"] for stage in results["stages"]] == ["kept", "rolled back", "kept"]
    assert results["saved"] == ["adapter", "base", "model"]
    assert set(results["reload_difference"]) == {"model", "adapter"}
    assert results["test"]["values"]["accuracy"] > 0.8
    for name in ("recipe.yaml", "resolved.json", "environment.json", "data/audit.json", "model/README.md"):
        assert (place / "run" / name).exists()
    assert (place / "run/stages/01-full/checkpoint").is_dir()
    assert not (place / "run/stages/02-partial/checkpoint").exists()
    assert not list((place / "run").rglob("*.bin"))
    steps = [json.loads(line) for line in (place / "run/stages/01-full/steps.jsonl").read_text().splitlines()]
    assert [step["update"] for step in steps] == list(range(1, len(steps) + 1))

    shown = command("show", "run")
    assert shown.code == 0
    assert "rolled back" in shown.out


def test_predict_answers_every_row_in_its_place(command: Command, finished: Path) -> None:
    new = pl.DataFrame({"text": ["the film was superb", "", "a dull plot", None], "id": ["1", "2", "3", "4"]})
    new.write_csv("new.csv")
    predicted = command("predict", "run", "new.csv", "--output", "out.csv")
    assert predicted.code == 0, predicted.err
    assert "2 rows get no answer" in predicted.err
    out = pl.read_csv("out.csv")
    assert out["id"].to_list() == [1, 2, 3, 4]
    assert out["label"].to_list() == ["good", None, "bad", None]
    assert out["probability_good"][0] + out["probability_bad"][0] == pytest.approx(1)
    pl.DataFrame({"text": ["a dull plot", " "]}).write_csv("one.csv")
    assert "1 row gets no answer" in command("predict", "run", "one.csv").err


def test_predict_keeps_what_jsonl_says(command: Command, finished: Path) -> None:
    rows = [
        {"id": 7, "text": "the film was superb", "tags": ["\ud83d", "\u6797"], "price": 1.5},
        {"text": "a dull plot", "id": None},
    ]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command("predict", "run", "new.jsonl", "--output", "out.jsonl").code == 0
    answered = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in given} for row, given in zip(answered, rows, strict=True)] == rows
    assert [row["label"] for row in answered] == ["good", "bad"]


def test_predict_leaves_the_columns_of_earlier_answers(command: Command, finished: Path) -> None:
    pl.DataFrame({"text": ["a dull plot"], "label": ["bad"]}).write_csv("out.csv")
    again = command("predict", "run", "out.csv", "--output", "again.csv")
    assert again.code == 0, again.err
    thrice = command("predict", "run", "again.csv", "--output", "again.csv")
    assert thrice.code == 0, thrice.err
    columns = pl.read_csv("again.csv").columns
    assert [name for name in columns if name.endswith(("label", "label_2"))] == [
        "label",
        "predicted_label",
        "predicted_label_2",
    ]
    assert not list(finished.glob(".*.partial"))
    refused = command("predict", "no run", "out.csv", "--output", "nodir/out.csv")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "no folder 'nodir'" in refused.err


def test_evaluate_says_what_it_scores(command: Command, finished: Path) -> None:
    scored = command("evaluate", "run", "table.csv")
    assert scored.code == 0, scored.err
    assert "macro_f1" in scored.out
    trained_on = pl.read_parquet("run/data/train.parquet").height
    assert f"note: {trained_on} rows are also training rows of this run" in scored.err
    pl.DataFrame({"text": [" a duller plot ", "fine", " "], "label": ["bad ", None, "good"]}).write_csv("few.csv")
    few = command("evaluate", "run", "few.csv")
    assert few.code == 0, few.err
    assert few.err == "note: 2 rows are left out (missing text: 1, missing label: 1)\n"
    assert "few.csv (1 row)" in few.out
    pl.DataFrame({"text": ["a duller plot", " "], "label": ["bad", "good"]}).write_csv("one.csv")
    assert "1 row is left out (missing text: 1)" in command("evaluate", "run", "one.csv").err


def test_a_damaged_file_of_a_run_is_named(command: Command, place: Path, tuned: Path) -> None:
    shutil.copytree(tuned, "run")
    Path("run/results.json").write_text("{")
    refused = command("show", "run")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "results.json: it is damaged" in refused.err


def test_a_run_is_no_model(command: Command, finished: Path) -> None:
    refused = command("roles", "run")
    assert (refused.code, refused.err) == (
        2,
        "model: 'run' is the folder of a run; give the model in it, 'run/model'\n",
    )
    assert command("roles", "run/model").code == 0


def test_a_run_is_trained_by_one_process_at_a_time(command: Command, place: Path, tuned: Path) -> None:
    shutil.copytree(tuned, "run")
    Path("run/results.json").unlink()
    with RunFolder(Path("run")).alone():
        refused = command("train", "--resume", "run")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "another process is training 'run'" in refused.err
    assert command("train", "--resume", "run").code == 0


def test_columns_may_be_called_otherwise_than_in_training(command: Command, finished: Path) -> None:
    pl.DataFrame({"review": ["a dull plot"], "stars": ["bad"]}).write_csv("other.csv")
    by_key = command("evaluate", "run", "other.csv", "--column", "text=review", "--column", "label=stars")
    assert by_key.code == 0, by_key.err
    for wrong, why in (("words=review", "the run reads no words"), ("text", "'text' names no column")):
        refused = command("predict", "run", "other.csv", "--column", wrong)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert why in refused.err
    assert '"text"' in command("predict", "run", "other.csv").err
    assert "a dull plot,bad,bad," in command("predict", "run", "other.csv", "--text", "review").out
    rounded = command("predict", "run", "other.csv", "--text", "review", "--precision", "bfloat16").out
    assert "a dull plot,bad,bad," in rounded
    assert rounded != command("predict", "run", "other.csv", "--text", "review", "--precision", "float32").out
    other = command("evaluate", "run", "other.csv", "--text", "review", "--label", "stars")
    assert other.code == 0, other.err
    assert "other.csv (1 row)" in other.out
    assert "reads no text_pair" in command("predict", "run", "other.csv", "--text-pair", "review").err
    pl.DataFrame({"review": ["a dull plot"], "stars": ["Bad"]}).write_csv("other.csv")
    unknown = command("evaluate", "run", "other.csv", "--text", "review", "--label", "stars")
    assert unknown.err.startswith(
        'other.csv: stars: 1 row has what the model does not know: "Bad"; did you mean "bad"?'
    )


def test_titles_and_what_is_to_be_copied_stay_in_one_line(tmp_path: Path) -> None:
    shown = io.StringIO()
    narrow = Console(file=shown, width=80)
    counts = {label: {label: 3} for label in ("0", "1")}
    details = {"confusion": counts, "per_class": [{"label": "0", "rows": 3}]}
    narrow.print(
        tables.scores_table({"rows": 6, "values": {}, "intervals": {}, "details": details}, "a file of a long name")
    )
    folder = tmp_path / "a run" / ("of a very long name " * 5)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"saved": ["model"]}))
    tables.print_places(narrow, RunFolder(folder))
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    assert {"a file of a long name (6 rows)", "Confusion (rows: true)"} <= set(lines)
    assert f"Use it: alloytune predict '{folder}' NEW.csv --output predictions.csv" in lines


def test_check_trains_nothing(command: Command, place: Path) -> None:
    checked = command("check", "recipe.yaml")
    assert checked.code == 0, checked.err
    for words in (
        "rows read",
        "2 classes in train: ",
        "layers[-1:] | head",
        "lora",
        "minutes",
        "FLOPs",
        "of full",
        "about",
    ):
        assert words in checked.out
    assert {path.name for path in place.iterdir()} == {"table.csv", "recipe.yaml"}


def test_check_refuses_what_train_refuses(command: Command, place: Path) -> None:
    for name in ("check", "train"):
        refused = command(name, "recipe.yaml", "--set", "stages.0.dropout=0", "--set", "stages.0.r_drop=1")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "both passes are the same" in refused.err


def test_roles_of_a_model(command: Command, bert: Path, gpt2: Path) -> None:
    shown = command("roles", gpt2, "layers[-1:] & attention")
    assert shown.code == 0, shown.err
    for words in (
        "c_attn",
        "16 x 48  768",
        "attention.key, attention.query, attention.value",
        "one weight for",
        "1,088",
    ):
        assert words in shown.out
    assert "wte" not in shown.out
    listed = json.loads(command("roles", bert, "lowest_layers(1) & mlp", "--json").out)
    assert listed["selected"] == 16 * 32 + 32 + 32 * 16 + 16
    assert listed["count"] == sum(parameter["count"] for parameter in listed["parameters"])
    assert [p["roles"] for p in listed["parameters"] if p["name"].endswith("0.output.dense.bias")] == [
        ["bias", "mlp.down"]
    ]
    refused = command("roles", bert, "layers[7]")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "'layers[7]' matches nothing" in refused.err


def test_recipes_lists_and_prints(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "quick.yml").write_text("about: Head alone. For a look.\nstages: [{name: only, train: head}]\n")
    monkeypatch.setenv("ALLOYTUNE_RECIPES", str(place / "mine"))
    listed = command("recipes").out
    rows = [row.split() for row in listed.splitlines() if row.strip()]
    places = {row[0]: number for number, row in enumerate(rows)}
    assert places.keys() >= {*shipped_names(), "quick"}
    assert places["BASELINE"] < places["lora"] < places["QUALITY"] < places["hybrid"] < places["YOUR"] < places["quick"]
    assert ("Head alone." in listed, "For a look." in listed) == (True, False)
    for name in ("hybrid", "quick"):
        told = command("recipes", name).out
        assert told.startswith(f"# {name}")
        assert recipe_from(load(told, name)[0]) == read_recipe(name).recipe  # the file as it is, under comments
    assert "full     trains all until epochs 5, patience 2" in command("recipes", "hybrid").out


@pytest.mark.parametrize("name", ["full", "head", "last-layers", "lora", "bottleneck", "hybrid"])
def test_shipped_recipes_pass_check(command: Command, place: Path, bert: Path, name: str) -> None:
    checked = command("check", name, "--model", bert, "--data", "table.csv")
    assert checked.code == 0, checked.err


def test_options_and_overrides(command: Command, place: Path) -> None:
    labels = {"bad": "[/ham]", "good": "[spam]"}  # which look like markup
    tiny.make_table(150).with_columns(pl.col("label").replace(labels)).write_csv(place / "table.csv")
    run = place / "run"
    done = command(
        *("train", "recipe.yaml", "--seed", "9", "--set", "stages.full.until.epochs=1", "--output", "run"),
        *("--set", "stages.1.otherwise=stop"),
    )
    assert done.code == 0, done.err
    for words in labels.values():
        assert words in done.out
    resolved = json.loads((run / "resolved.json").read_text())
    assert resolved["seed"] == 9
    assert resolved["stages"][0]["until"]["epochs"] == 1.0
    results = json.loads((run / "results.json").read_text())
    assert [stage["decision"] for stage in results["stages"]] == ["kept", "rolled back", "not run"]
    assert results["saved"] == ["model"]

    # as after a kill just before the verdict on the second stage was written
    (run / "results.json").unlink()
    (run / "stages/02-partial/result.json").unlink()
    shown = command("show", "run").out
    for words in ("kept", "partial: at update ", "alloytune train --resume run"):
        assert words in shown
    assert "rolled back" not in shown
    refused = command("train", "--resume", "run", "--seed", "9", "--set", "batch=4", "--data", "table.csv")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "leave --data, --set, --seed away" in refused.err
    assert command("train", "--resume", "run").code == 0
    shutil.copytree(run, place / "r[/x]")
    finished = command("train", "--resume", "r[/x]")
    for words in ("r[/x] is finished already", "Saved: r[/x]/model", *labels.values()):
        assert words in finished.out
    written = io.StringIO()
    terminal = Terminal(Console(file=written, width=160))
    terminal.on_data(RunFolder(Path("r[/x]")))
    terminal.on_model(build_session(read_recipe(str(place / "recipe.yaml")).recipe, load_splits(run / "data")))
    assert "reason: r[/x]/data/audit.json" in written.getvalue()
    again = json.loads((run / "results.json").read_text())
    seconds = sum(stage.get("seconds", 0) for stage in again["stages"])
    assert "whole run" not in finished.out
    assert f"training: {seconds:.0f} s" in finished.out
    assert [stage["decision"] for stage in again["stages"]] == ["kept", "rolled back", "not run"]
    assert again["test"] == results["test"]
