"""Bad rows and unfit models, by task: a clear line, or a counted and listed drop; never a silent one."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny
from flows.test_commands import Command, command

__all__ = ["command"]  # a fixture

RECIPE = """
model: {model}
task: {task}
data: {{train: table.jsonl, {columns}split: {{validation: 20%, test: 20%}}, near_duplicates: false}}
batch: 4
max_length: 12
stages: [{{name: full, train: all, rate: 1e-3, until: {{updates: 1}}}}]
"""
Row = dict[str, Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: Path, model: Path, task: str, rows: Sequence[Row]) -> None:
    lines = [json.dumps(row) + "\n" for row in rows]
    (place / "table.jsonl").write_text("".join(lines))
    columns = "".join(f"{key}: {key}, " for key in ("messages", "spans") if key in rows[0])
    (place / "recipe.yaml").write_text(RECIPE.format(model=model, task=task, columns=columns))


def says(*words: str) -> list[Row]:
    return [{"role": role, "content": word} for role, word in zip(("user", "assistant"), words, strict=False)]


NUMBERS = range(20)
WRITING = "{generation: {generate: 0}}"
TALKS = [{"messages": says(f"good {n}", f"film {n}")} for n in NUMBERS]
SPANS = [{"text": f"a good film {n}", "spans": [[2, 6, "PRAISE"]]} for n in NUMBERS]
TAGS = [{"tokens": ["good", "film", str(n)], "tags": ["B-PRAISE", "O", "O"]} for n in NUMBERS]
PRICES = [{"text": f"film {n}", "label": str(n)} for n in NUMBERS]
LONG = " ".join(["good"] * 30)

CASES: dict[str, tuple[str, str, list[Row], Row, str]] = {  # model, task, good rows, a bad one, why it is dropped
    "a chat without the assistant": ("llama", WRITING, TALKS, {"messages": says("good")}, "no assistant turn"),
    "a span outside its text": (
        "bert",
        "tagging",
        SPANS,
        {"text": "a good plot", "spans": [[2, 60, "PRAISE"]]},
        "span outside its text",
    ),
    "tags that do not match": (
        "bert",
        "tagging",
        TAGS,
        {"tokens": ["good", "plot"], "tags": ["O"]},
        "tags do not match the tokens",
    ),
    "a label that is no number": (
        "bert",
        "regression",
        PRICES,
        {"text": "a plot", "label": "dear"},
        "label is no number",
    ),
    "a target that is NaN": ("bert", "regression", PRICES, {"text": "a plot", "label": "NaN"}, "label is not finite"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_row_is_dropped_and_listed(
    command: Command, place: Path, request: pytest.FixtureRequest, case: str
) -> None:
    model, task, rows, bad, why = CASES[case]
    write(place, request.getfixturevalue(model), task, [*rows, bad])
    done = command("train", "recipe.yaml", "--output", "run")
    assert done.code == 0, done.err
    dropped = json.loads((place / "run/data/audit.json").read_text())["dropped"]
    assert [(row["row"], row["reason"]) for row in dropped] == [("table.jsonl:21", why)]


@pytest.mark.parametrize("case", CASES)
def test_nothing_but_bad_rows_is_refused(
    command: Command, place: Path, request: pytest.FixtureRequest, case: str
) -> None:
    model, task, _, bad, why = CASES[case]
    write(place, request.getfixturevalue(model), task, [bad] * 20)
    done = command("train", "recipe.yaml", "--output", "run")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert why in done.err
    assert not (place / "run").exists()


def test_examples_written_another_way_are_told_how_to_be_named(command: Command, place: Path, llama: Path) -> None:
    write(place, llama, WRITING, TALKS)
    (place / "recipe.yaml").write_text(RECIPE.format(model=llama, task=WRITING, columns=""))
    done = command("train", "recipe.yaml", "--output", "run")
    assert done.code == 2
    assert "name those that are there: data: {messages: messages}" in done.err


def test_an_answer_longer_than_the_limit_is_counted_and_listed(command: Command, place: Path, llama: Path) -> None:
    write(place, llama, WRITING, [*TALKS, {"messages": says("film", LONG)}])
    done = command("train", "recipe.yaml", "--output", "run")
    assert done.code == 0, done.err
    left_out = json.loads((place / "run/results.json").read_text())["rows_left_out"]
    listed = [tuple(row) for rows in left_out.values() for row in rows]
    assert listed == [("table.jsonl:21", "answer longer than the limit")]
    assert "1 row is left out (answer longer than the limit: 1)" in done.out


def test_answers_all_longer_than_the_limit_are_refused(command: Command, place: Path, llama: Path) -> None:
    write(place, llama, WRITING, [{"messages": says(f"film {n}", LONG)} for n in NUMBERS])
    done = command("train", "recipe.yaml", "--output", "run")
    assert done.code == 2
    assert "answer longer than the limit" in done.err
    assert "max_length" in done.err


def test_a_tokenizer_without_padding_and_end_is_refused(command: Command, place: Path, llama: Path) -> None:
    model = shutil.copytree(llama, place / "model")
    tokenizer = tiny.make_tokenizer(padding=False)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(model)
    write(place, model, WRITING, TALKS)
    done = command("train", "recipe.yaml", "--output", "run")
    assert done.code == 2
    assert "no padding and no end token" in done.err


def test_a_vocabulary_larger_than_the_embeddings_is_refused(command: Command, place: Path, llama: Path) -> None:
    model = shutil.copytree(llama, place / "model")
    tokenizer = tiny.make_tokenizer(padding=False)
    tokenizer.add_tokens(["<url>"])
    tokenizer.save_pretrained(model)
    write(place, model, WRITING, TALKS)
    done = command("train", "recipe.yaml", "--output", "run")
    assert done.code == 2
    assert f"{len(tiny.WORDS) + 1} tokens, the model embeds only {len(tiny.WORDS)}" in done.err
