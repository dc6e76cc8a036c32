"""No task lets a model keep keys and values, and what it gives is the same without."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import tiny
from alloytune.models.load import load_model, load_tokenizer
from alloytune.recipe.types.task import settings_of
from alloytune.tasks.abilities import FitsModel
from alloytune.tasks.task import find_task
from alloytune.tasks.uncached import call_uncached
from architectures import ARCHITECTURES
from tasks.tables import TABLES
from templates import CHATML

TEXTS = tiny.make_table(6)["text"]
ROWS = {
    "classification": tiny.make_table(6),
    "language_modelling": pl.DataFrame({"text": TEXTS}),
    "embedding": pl.DataFrame({"query": TEXTS, "document": TEXTS}),
    "preference": pl.DataFrame({"prompt": TEXTS, "chosen": ["fine"] * 6, "rejected": ["bad"] * 6}),
    "generation": pl.DataFrame({"prompt": TEXTS, "completion": ["fine"] * 6}),
    "translation": pl.DataFrame({"source": TEXTS, "target": ["fine"] * 6}),
    **{name: make(6) for name, make in TABLES.items()},
}


@pytest.mark.parametrize(
    ("name", "family"), [*((name, "llama") for name in ROWS), ("classification", "bart"), ("translation", "t5")]
)
def test_no_task_keeps_keys_and_values(name: str, family: str, tmp_path: Path) -> None:
    source = str(ARCHITECTURES[family].save(tmp_path))
    table = ROWS[name].with_columns(pl.all().cast(pl.String))
    task = find_task(name).learn(settings_of(name), table)
    task = task.fitted(source) if isinstance(task, FitsModel) else task
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = CHATML
    model, _ = load_model(task.auto_class, source, tokenizer, 0, **task.config)
    kept: list[Any] = []
    model.register_forward_hook(lambda module, given, output: kept.append(output.get("past_key_values")))
    task.outputs(model, task.collate(task.encode(table, tokenizer, 32).examples, tokenizer))
    assert kept
    assert not any(kept)


@pytest.mark.parametrize("family", ["bert", "llama", "bart", "distilbert"])
def test_a_call_gives_the_same(family: str, tmp_path: Path) -> None:
    source = str(ARCHITECTURES[family].save(tmp_path))
    tokenizer = load_tokenizer(source)
    model, _ = load_model(tiny.TASK.auto_class, source, tokenizer, 0, **tiny.TASK.config)
    model.eval()
    inputs = tiny.TASK.collate(tiny.TASK.encode(ROWS["classification"], tokenizer, 32).examples, tokenizer).inputs
    torch.testing.assert_close(call_uncached(model, inputs).logits, model(**inputs).logits)
