"""Every task through whole commands, and what must hold for each."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny
from alloytune.evaluate.predict import predict
from alloytune.machine import Machine
from alloytune.models.load import load_model, load_tokenizer
from alloytune.recipe.tasks import TASKS
from alloytune.recipe.types.task import Task as TaskOfRecipe
from alloytune.recipe.types.task import settings_of
from alloytune.tasks.task import find_task
from flows.test_commands import Command, command
from tasks.tables import TABLES, spanned

__all__ = ["command"]  # a fixture

EXACT = Machine(torch.device("cpu"), torch.float32)

RECIPE = """
model: {model}
task: {task}
data: {{train: {train}, split: {{validation: 20%, test: 20%}}}}
batch: 8
stages:
  - name: full
    {stage}
    rate: 1e-2
    until: {{epochs: 3}}
    accept: {{gain: -1 SE, metric: loss}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(
    command: Command, place: Path, bert: Path, task: str, table: pl.DataFrame, stage: str = "train: all"
) -> dict[str, Any]:
    """Train, look at it, predict and evaluate; give the results and the predictions."""
    file = "table.jsonl"
    table.write_ndjson(place / file)
    if "tags" in table.columns:  # as people have it
        file = "table.conll"
        rows = zip(map(json.loads, table["tokens"]), map(json.loads, table["tags"]), strict=True)
        pairs = ["\n".join(map("\t".join, zip(tokens, tags, strict=True))) for tokens, tags in rows]
        (place / file).write_text("\n\n".join(pairs) + "\n", encoding="utf-8")
    (place / "recipe.yaml").write_text(RECIPE.format(model=bert, task=task, train=file, stage=stage))
    done = command("train", "recipe.yaml", "--output", "run")
    assert done.code == 0, done.err
    metrics = TASKS[json.loads((place / "run/resolved.json").read_text())["task"] if ":" not in task else "multilabel"]
    for metric in metrics.metrics:
        assert f"\n {metric} " in done.out
    assert command("show", "run").code == 0
    predicted = command("predict", "run", file, "--output", "out.jsonl")
    assert predicted.code == 0, predicted.err
    scored = command("evaluate", "run", file)
    assert scored.code == 0, scored.err
    assert f"({table.height} rows)" in scored.out
    assert "left out" not in scored.err
    results: dict[str, Any] = json.loads((place / "run/results.json").read_text())
    assert results["stages"][0]["decision"] == "kept", results["stages"][0]["reason"]
    assert re.search(r"needed \w+ lower by \S+ \(-1 SE\) or more, got lower by", results["stages"][0]["reason"])
    return results


def test_multilabel(command: Command, place: Path, bert: Path) -> None:
    task = "{multilabel: {threshold: tuned-per-label}}"
    results = train(command, place, bert, task, TABLES["multilabel"](120))
    out = pl.read_ndjson(place / "out.jsonl")
    model = AutoModelForSequenceClassification.from_pretrained(place / "run/model").eval()
    assert model.config.thresholds == results["learned"]["thresholds"]
    tokenizer = AutoTokenizer.from_pretrained(place / "run/model")
    with torch.inference_mode():
        chances = model(**tokenizer([out["text"][0]], return_tensors="pt")).logits.sigmoid()[0].tolist()
    own = [model.config.id2label[n] for n, chance in enumerate(chances) if chance >= model.config.thresholds[n]]
    assert out["predicted_labels"][0].to_list() == own
    assert out["probability_film"][0] == pytest.approx(chances[0], abs=1e-5)


def test_regression(command: Command, place: Path, bert: Path) -> None:
    stage = "attach: {lora: {}}\n    train: all | adapter"
    results = train(command, place, bert, "regression", TABLES["regression"](120), stage)
    assert results["saved"] == ["adapter", "base", "model"]
    assert results["learned"]["mean"] == pytest.approx(115, abs=5)
    out = pl.read_ndjson(place / "out.jsonl")
    model = AutoModelForSequenceClassification.from_pretrained(place / "run/model").eval()
    inputs = AutoTokenizer.from_pretrained(place / "run/model")([out["text"][0]], return_tensors="pt")
    with torch.inference_mode():
        number = float(model(**inputs).logits) * model.config.label_std + model.config.label_mean
    assert out["predicted_label"][0] == pytest.approx(number, abs=1e-3)
    assert 95 < out["predicted_label"].mean() < 135


def test_tagging(command: Command, place: Path, bert: Path) -> None:
    results = train(command, place, bert, "tagging", TABLES["tagging"](120))
    checked = command("check", "recipe.yaml")
    assert checked.code == 0, checked.err
    out = pl.read_ndjson(place / "out.jsonl")
    assert command("predict", "run", "table.conll", "--output", "out.csv").code == 0
    in_csv = map(json.loads, pl.read_csv(place / "out.csv")["predicted_tags"])
    for tokens, tags, again in zip(
        map(json.loads, out["tokens"]), out["predicted_tags"].to_list(), in_csv, strict=True
    ):
        assert len(tokens) == len(tags)
        assert tags == again
    assert results["learned"]["labels"] == ["O", "B-BLAME", "I-BLAME", "B-PRAISE", "I-PRAISE"]
    assert {entry["type"] for entry in results["test"]["details"]["per_type"]} == {"BLAME", "PRAISE"}


def test_every_task_has_words_and_settings() -> None:
    assert set(TASKS) == set(TaskOfRecipe.model_fields)
    for name in TASKS:
        find_task(name).rules(settings_of(name), TASKS[name].columns({}))


@pytest.mark.parametrize("name", [*TABLES, "spans"])
def test_parts_of_a_batch_have_the_loss_of_the_whole(bert: Path, name: str) -> None:
    kind = find_task("tagging" if name == "spans" else name)
    settings = settings_of("tagging" if name == "spans" else name)
    table = spanned(12) if name == "spans" else TABLES[name](12)
    table = table.with_columns(pl.all().cast(pl.String))
    tokenizer = load_tokenizer(str(bert))
    task = kind.learn(settings, table)
    model, _ = load_model(task.auto_class, str(bert), tokenizer, 0, **task.config)
    examples = task.encode(table, tokenizer, 32).examples
    whole = task.collate(examples, tokenizer)
    parts = [task.collate(examples[n : n + 5], tokenizer) for n in (0, 5, 10)]
    model.eval()
    losses = [float(task.summed_loss(model, batch).detach()) for batch in parts]
    assert sum(losses) == pytest.approx(float(task.summed_loss(model, whole).detach()), rel=1e-5)
    assert sum(batch.num_targets for batch in parts) == whole.num_targets
    answers = predict(model, task, examples, tokenizer, EXACT)
    scores = task.values(task.figures(answers, examples))
    assert scores["loss"] == pytest.approx(sum(losses) / whole.num_targets, rel=1e-5)
    assert set(scores) == set(TASKS["tagging" if name == "spans" else name].metrics)


def test_llama_tags_from_the_left(llama: Path) -> None:
    """A decoder without a padding token, and padding on its left, tags as without padding."""
    tokenizer = load_tokenizer(str(llama))
    table = TABLES["tagging"](6)
    task = find_task("tagging").learn({}, table)
    model, _ = load_model(task.auto_class, str(llama), tokenizer, 0, **task.config)
    examples = task.encode(table, tokenizer, 32).examples
    model.eval()
    for side in ("left", "right"):
        tokenizer.padding_side = side
        together = predict(model, task, examples, tokenizer, EXACT)
        for example, answer in zip(examples, together, strict=True):
            (alone,) = predict(model, task, [example], tokenizer, EXACT)
            assert torch.allclose(torch.from_numpy(alone), torch.from_numpy(answer), atol=1e-5)


def test_settings_of_a_task_are_read(command: Command, place: Path, bert: Path) -> None:
    tiny.make_table(60).write_csv(place / "table.csv")
    full = ("check", "full", "--model", bert, "--data", "table.csv")
    refused = command(*full, "--set", "task=tagging", "--label", "label")
    assert refused.code == 2
    assert "the task tagging has no column 'label'; it reads tokens, tags, or text, spans" in refused.err
    (place / "table.conll").write_text("Ann B-PER\nsang O\n", encoding="utf-8")
    refused = command("check", "full", "--model", bert, "--data", "table.conll")
    assert 'no column "text"; tokens and tags are columns of the task tagging: write task: tagging' in refused.err
    refused = command(*full, "--set", "task=regression")
    assert refused.code == 2
    assert "no usable row is left (label is no number: " in refused.err
