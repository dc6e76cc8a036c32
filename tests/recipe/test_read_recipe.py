"""Reading: shipped recipes, YAML 1.2, files that are none, paths, recipes built in code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alloytune.errors import RecipeError
from alloytune.recipe.catalogue import shipped
from alloytune.recipe.read import read_recipe, recipe_from, recipe_read, require_complete, resolved
from alloytune.recipe.shipped import shipped_names, shipped_text
from alloytune.recipe.types.adapter import Attach, Lora
from alloytune.recipe.types.data import Data
from alloytune.recipe.types.recipe import Recipe
from alloytune.recipe.types.stage import Stage

STAGE = {"name": "full", "train": "all", "rate": 1e-4}
STAGES = "stages:\n  - {name: full, train: all, rate: 2e-5}\n"


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refused(name_or_path: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(name_or_path)
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipe_reads(name: str) -> None:
    read = read_recipe(name)
    assert read.text == shipped_text(name)
    assert read.source == f"shipped/{name}.yaml"
    assert read.recipe.model is None


@pytest.mark.parametrize("name", shipped_names())
def test_resolved_reads_into_the_same_recipe(name: str) -> None:
    recipe = read_recipe(name, defaults={"model": "bert", "data": {"train": "a.csv"}}).recipe
    value = json.loads(json.dumps(resolved(recipe), allow_nan=False))
    assert recipe_from(value) == recipe
    assert resolved(recipe_from(value)) == resolved(recipe)


def test_resolved_fills_every_default_in() -> None:
    value = resolved(recipe_from({"stages": [{**STAGE, "accept": {}}, {**STAGE, "name": "b"}]}))
    assert set(value) == set(Recipe.model_fields)
    assert set(value["data"]) == set(Data.model_fields)
    assert set(value["stages"][0]) == set(Stage.model_fields)
    assert set(value["stages"][1]) == set(Stage.model_fields) - {"otherwise"}


def test_summaries_are_one_sentence() -> None:
    entries = {entry.name: entry for found in shipped().values() for entry in found}
    assert list(entries) != list(shipped_names()) == sorted(entries)  # every one, by purpose
    assert entries["head"].summary.endswith("(Kumar et al. 2022).")
    assert all(len(entry.summary) <= 100 and "\n" not in entry.summary for entry in entries.values())
    with pytest.raises(RecipeError, match=r"did you mean 'hybrid'\?"):
        shipped_text("hybird")


def test_a_blank_may_part_labels() -> None:
    written = {"task": {"multilabel": {"separator": " "}}, "stages": [STAGE]}
    assert recipe_from(written).task_settings["separator"] == " "


def test_yaml_is_1_2(tmp_path: Path) -> None:
    text = (
        "about: 2026-01-01\nmodel: no\nseed: 010\ndata: {text: yes, label: on, train: 1:30}\n"
        "stages:\n  - {name: full, train: all, rate: 2e-5, until: {epochs: 3}, merge: False, clip: null}\n"
    )
    recipe = read_recipe(write(tmp_path / "r.yaml", text)).recipe
    assert (recipe.about, recipe.model, recipe.seed) == ("2026-01-01", "no", 10)
    assert (recipe.data.text, recipe.data.label) == ("yes", "on")
    stage = recipe.stages[0]
    assert (stage.rate, stage.until.epochs, stage.merge, stage.clip) == (2e-5, 3.0, False, None)


def test_shares_and_selections_over_lines(tmp_path: Path) -> None:
    text = (
        "data: {split: {validation: 12.5%, test: 0.2}}\n"
        "stages:\n  - name: a\n    train: >\n      layers[-2:]\n      | head\n    rate: 1\n    warmup: 5 %\n"
    )
    recipe = read_recipe(write(tmp_path / "r.yaml", text)).recipe
    assert (recipe.data.split.validation, recipe.data.split.test, recipe.stages[0].warmup) == (0.125, 0.2, 0.05)
    assert recipe.stages[0].train == "layers[-2:] | head"


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = (
        "stages:\n  - &a {name: a, train: all, rate: 1e-4, until: &u {epochs: 2}}\n"
        "  - {<<: *a, name: b}\n  - {name: c, train: head, rate: 1, until: *u}\n"
    )
    recipe = read_recipe(write(tmp_path / "r.yaml", text)).recipe
    assert [stage.until.epochs for stage in recipe.stages] == [2, 2, 2]
    assert [stage.train for stage in recipe.stages] == ["all", "all", "head"]
    message = refused(write(tmp_path / "bad.yaml", text.replace("name: b", "name: a")))
    assert "bad.yaml:3:" in message


def test_bom_and_windows_line_ends(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + ("# \u00e9\n" + STAGES).replace("\n", "\r\n").encode()
    assert read_recipe(write(tmp_path / "r.yaml", text)).recipe.stages[0].rate == 2e-5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("\ufeffmodel: a\n".encode("utf-16-le"), ":1:1: the file is not UTF-8 (found UTF-16)"),
        (b"model: a\nabout: caf\xe9\n", ":2:11: the file is not UTF-8 (found the byte 0xe9)"),
        (b"x" * 1_000_001, "no recipe is so large"),
        (b"a: " + b"[" * 30_000, "nested more than"),
        (b"a: !!int x\n", "cannot be read"),
        (
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 107)),
            "more than 20,000 values",
        ),
        (b"stages:\n  ? [a]\n  : 3\n", "put it in quotes"),
    ],
    ids=["utf-16", "latin-1", "large", "deep", "bad int", "alias bomb", "list as key"],
)
def test_hostile_files(content: bytes, words: str, tmp_path: Path) -> None:
    assert words in refused(write(tmp_path / "r.yaml", content))


def test_missing_file_names_what_is_near(tmp_path: Path) -> None:
    write(tmp_path / "tweets.yaml", STAGES)
    message = refused(str(tmp_path / "tweet.yaml"))
    assert f"did you mean {str(tmp_path / 'tweets.yaml')!r}?" in message
    assert all(name in message for name in shipped_names())
    assert "there is no folder" in refused(str(tmp_path / "no" / "tweets.yaml"))
    assert "the shipped recipe 'hybrid'" in refused("hybird")
    assert "the shipped recipe 'mam-like'" in refused("mam")
    assert "is a folder, not a recipe; it holds tweets.yaml" in refused(str(tmp_path))
    (tmp_path / "tweets.csv").write_text("text,label\n")
    assert "is a table, not a recipe; name a recipe first" in refused(str(tmp_path / "tweets.csv"))


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (there / "bert").mkdir(parents=True)
    (here / "local").mkdir(parents=True)
    monkeypatch.chdir(here)
    file = write(there / "r.yaml", f"model: bert\ndata: {{train: a.csv, validation: ../b.csv}}\n{STAGES}")
    recipe = read_recipe(file, ["data.test=c.csv"]).recipe
    assert recipe.model == str(there / "bert")
    assert recipe.data.train == str(there / "a.csv")
    assert recipe.data.validation == str(tmp_path / "b.csv")
    assert recipe.data.test == str(here / "c.csv")
    changed = read_recipe(file, (), {"model": "local", "data": {"train": Path("d.csv")}}).recipe
    assert (changed.model, changed.data.train) == (str(here / "local"), str(here / "d.csv"))


REPEATED = """
model: bert
data: {train: a.csv}
stages:
  - repeat:
      times: 2
      stages: [{name: head, train: head, rate: 1e-3, until: {epochs: 1}}]
  - name: words
    task: {language_modelling: {}}
    data: {train: words.csv}
    train: all
    rate: 1e-4
    until: {epochs: 1}
  - name: lora
    attach: {folder: left}
    train: adapter
    rate: 1e-3
    until: {epochs: 1}
"""


def test_paths_of_stages_are_relative_to_what_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    file = write(there / "r.yaml", REPEATED)
    *_, words, lora = read_recipe(file).recipe.stages
    assert (lora.attach.folder, words.data.train) == (str(there / "left"), str(there / "words.csv"))
    overrides = ["stages.lora.attach.folder=mine", "stages.words.data.train=other.csv"]
    *_, words, lora = read_recipe(file, overrides).recipe.stages
    assert (lora.attach.folder, words.data.train) == (str(here / "mine"), str(here / "other.csv"))


def test_models_that_are_no_folder_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("org/bert", "package:some/model"):
        assert read_recipe("full", (), {"model": model}).recipe.model == model
    assert read_recipe("full", (), {"model": "./bert"}).recipe.model == str(tmp_path / "bert")


def test_require_complete() -> None:
    with pytest.raises(RecipeError) as caught:
        require_complete(read_recipe("full"))
    assert [problem.path for problem in caught.value.problems] == ["model", "data.train"]
    assert "--model" in str(caught.value)
    require_complete(read_recipe("full", (), {"model": "bert", "data": {"train": "a.csv"}}))


def test_recipe_in_code_gets_the_same_checks() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from({"stages": ({**STAGE, "lr": 1}, {**STAGE, "until": {"patience": 1}})}, source="mine")
    assert [str(problem) for problem in caught.value.problems] == [
        "mine: stages[0].lr: unknown key 'lr'; did you mean 'rate'?",
        "mine: stages[1].name: 'full' is the name of an earlier stage, too; every stage needs its own",
        "mine: stages[1].until: patience alone may never end the stage; give epochs, updates, minutes or flops "
        "beside it, such as {epochs: 10, patience: 2}",
    ]
    stages = [Stage(name="a", train="adapter", rate=1e-4)]
    with pytest.raises(RecipeError, match="none is attached"):
        recipe_from(Recipe(stages=stages))
    with pytest.raises(RecipeError, match="is not a recipe"):
        recipe_from([STAGE])  # type: ignore[arg-type]


def test_recipe_read_writes_a_text_that_reads_the_same(tmp_path: Path) -> None:
    recipe = Recipe(
        model="org/bert",
        stages=[Stage(name="a", attach=Attach(lora=Lora(on="layers[-2:] & mlp")), train="adapter", rate=2e-5)],
    )
    read = recipe_read(recipe, ["seed=3"])
    assert read.recipe.seed == 3
    assert read_recipe(write(tmp_path / "r.yaml", read.text), read.overrides).recipe == read.recipe


def test_reading_needs_no_torch() -> None:
    code = "import sys, alloytune.recipe.read, alloytune.recipe.shipped; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
