"""Rows in flat arrays are the examples that the tokenizer makes of them one by one; passes over them fit."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from alloytune.tasks import embedding, tagging, texts
from alloytune.tasks.embedding import Embedding
from alloytune.tasks.tagging import Tagging
from alloytune.tasks.task import Task
from alloytune.tasks.tokenized import count_tokens, passes
from tasks.tables import tagged
from tiny import make_table, make_tokenizer


@pytest.mark.parametrize("has_pairs", [False, True])
@pytest.mark.parametrize("max_length", [None, 6])
def test_examples_are_those_of_single_rows(
    has_pairs: bool, max_length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "ROWS_AT_ONCE", 7)  # so that parts have to be joined
    table = make_table(20).select("text")
    if has_pairs:
        table = table.with_columns(pl.col("text").reverse().alias("text_pair"))
    tokenizer = make_tokenizer()
    encoded = texts.encode_texts(table, list(range(20)), tokenizer, max_length)
    whole = [tokenizer(*row) for row in table.iter_rows()]
    alone = [tokenizer(*row, truncation=max_length is not None, max_length=max_length) for row in table.iter_rows()]
    assert encoded.num_cut == sum(
        len(one["input_ids"]) < len(other["input_ids"]) for one, other in zip(alone, whole, strict=True)
    )
    examples = list(encoded.examples)
    assert [example.row for example in examples] == [str(n + 1) for n in range(20)]
    assert [example.target for example in examples] == list(range(20))
    for example, one in zip(examples, alone, strict=True):
        assert example.inputs == {key: values for key, values in one.items() if key != "attention_mask"}
    assert count_tokens(encoded.examples).tolist() == [example.num_tokens for example in examples]
    assert encoded.examples[3:9:2] == examples[3:9:2]
    assert encoded.examples[-1] == examples[-1]
    with pytest.raises(IndexError):
        encoded.examples[20]


def make_queries(rows: int) -> pl.DataFrame:
    """Give queries with documents, and with up to two negatives."""
    document = make_table(rows)["text"]
    negatives = [json.dumps(document.to_list()[: n % 3]) for n in range(rows)]
    return pl.DataFrame({"query": document.str.slice(0, 9), "document": document, "negative": negatives})


@pytest.mark.parametrize(
    ("task", "table", "texts_a_row"),
    [
        (Tagging(("O", "B-PRAISE", "I-PRAISE", "B-BLAME", "I-BLAME")), tagged(20), 1),
        (Embedding(0.05, "", "", "mean"), make_queries(20), 4),  # query, document, two negatives
    ],
    ids=["tagging", "embedding"],
)
@pytest.mark.parametrize("max_length", [None, 6])
def test_a_tokenizer_never_gets_a_whole_split(
    task: Task, table: pl.DataFrame, texts_a_row: int, max_length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    whole = task.encode(table, tokenizer, max_length)
    tokenize, sizes = type(tokenizer).__call__, []

    def record(self: Any, given: list[Any], **how: Any) -> Any:
        sizes.append(len(given))
        return tokenize(self, given, **how)

    monkeypatch.setattr(type(tokenizer), "__call__", record)
    for module in (tagging, embedding):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    parts = task.encode(table, tokenizer, max_length)
    assert max(sizes) <= 7 * texts_a_row
    assert len(list(parts.examples)) == 20
    assert parts == whole


@pytest.mark.parametrize("most_padding", [None, 0, 20, 10_000])
def test_passes_hold_every_example_once_within_their_limits(most_padding: int | None) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 60, size=200)
    numbers = np.argsort(-lengths, kind="stable")
    cut = list(passes(numbers, lengths, 16, 300, most_padding))
    assert np.concatenate(cut).tolist() == numbers.tolist()
    padded = [len(chosen) * int(lengths[chosen].max()) for chosen in cut]
    padding = [taken - int(lengths[chosen].sum()) for taken, chosen in zip(padded, cut, strict=True)]
    assert max(map(len, cut)) <= 16
    assert max(padded) <= 300
    assert max(padding) <= (300 if most_padding is None else most_padding)
    assert (len(cut) > len(list(passes(numbers, lengths, 16, 300)))) == (most_padding in (0, 20))
