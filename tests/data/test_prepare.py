"""What holds for any table: every row accounted for, none in two splits, the same again from the same seed."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alloytune.data.audit import Audit
from alloytune.data.near import NearIndex
from alloytune.data.prepare import Dataset, prepare
from alloytune.data.rules import EXCERPT
from alloytune.data.settings import DataSettings, SplitSettings
from alloytune.data.store import load_splits, write_splits
from alloytune.errors import InputError
from alloytune.tasks.classification import Classification
from alloytune.tasks.embedding import Embedding
from alloytune.tasks.generation import Generation
from data.example_tables import SPLITS, all_rows, labelled, prepared, sentence, table, write

DIRT = ["", "  ", "\u200b", "caf\u00c3\u00a9 au lait", "fish &amp; chips", "a\r\nb", "Same", "same ", "RT @you: same"]
dirty_text = st.none() | st.sampled_from(DIRT) | st.integers(0, 30).map(sentence)
dirty_label = st.sampled_from(["good", "bad", " good", "", None, "10", "2"])
dirty_rows = st.lists(st.tuples(dirty_text, dirty_label), max_size=60)


def dirty_table(rows: list[tuple[str | None, str | None]]) -> pl.DataFrame:
    # Reversed, the solid rows are like no dirty one, so no class is lost to conflicts.
    solid = table({"good": 12, "bad": 12, "10": 8, "2": 8}).with_columns(pl.col("text").str.reverse())
    return pl.concat([solid, pl.DataFrame(rows, schema={"text": pl.String, "label": pl.String}, orient="row")])


def near_to_each_other(dataset: Dataset) -> list[tuple[str, str]]:
    """Compare every row with every other, without the index, and name the near ones in different splits."""
    rows = all_rows(dataset)
    index = NearIndex([rows["text"]])
    places = rows["split"].to_list()
    return [
        (rows["row"][one], rows["row"][other])
        for one, other in combinations(range(rows.height), 2)
        if places[one] != places[other] and index.are_near(np.array([one]), np.array([other])).any()
    ]


@settings(max_examples=40, deadline=None)
@given(dirty_rows, st.integers(0, 3), st.sampled_from([None, 20, 35]))
def test_every_row_is_accounted_for_once(
    rows: list[tuple[str | None, str | None]], seed: int, limit: int | None
) -> None:
    dirty = dirty_table(rows)
    dataset = prepared(dirty, seed=seed, rows=limit)
    audit = dataset.audit
    kept = all_rows(dataset)["row"].to_list()
    dropped = [row.row for row in audit.dropped]
    assert audit.read == {"table": dirty.height}
    assert dirty.height == len(kept) + len(dropped) + sum(audit.not_used.values())
    assert len({*kept, *dropped}) == len(kept) + len(dropped)
    assert audit.kept == {split: getattr(dataset, split).height for split in SPLITS}
    assert limit is None or len(kept) <= limit


@settings(max_examples=30, deadline=None)
@given(dirty_rows)
def test_cleaning_twice_changes_nothing(rows: list[tuple[str | None, str | None]]) -> None:
    once = all_rows(prepared(dirty_table(rows))).select("text", "label")
    again = prepared(once)
    assert again.audit.dropped == []
    assert again.audit.repaired == 0
    assert all_rows(again).select("text", "label").sort("text").equals(once.sort("text"))


@settings(max_examples=15, deadline=None)
@given(dirty_rows, st.integers(0, 100))
def test_no_row_exact_or_near_stands_in_two_splits(rows: list[tuple[str | None, str | None]], seed: int) -> None:
    assert near_to_each_other(prepared(dirty_table(rows), seed=seed)) == []


def test_retweets_stay_together() -> None:
    retweets = [f"RT @user{n}: {sentence(n // 4)} https://t.co/{n}" for n in range(200)]
    dataset = prepared(pl.DataFrame({"text": retweets, "label": ["ab"[n // 100] for n in range(200)]}))
    assert near_to_each_other(dataset) == []
    assert (dataset.audit.near_groups, dataset.audit.near_rows) == (50, 200)
    assert dataset.validation.height == pytest.approx(20, abs=4)


@pytest.mark.parametrize("near_duplicates", [True, False])
def test_given_splits_share_no_row(tmp_path: Path, near_duplicates: bool) -> None:
    base = table({"a": 20, "b": 20})
    near = f"RT @someone: {sentence(30)} https://t.co/x"
    test = pl.DataFrame({"text": [f" {sentence(0)}", near, "seen nowhere else", "nor is this"], "label": list("abab")})
    validation = pl.DataFrame({"text": [sentence(0), sentence(1)], "label": ["a", "a"]})
    validation.extend(pl.DataFrame({"text": ["also quite new"], "label": ["b"]}))
    files = (base, validation, test)
    paths = {split: write(tmp_path / f"{split}.csv", rows) for split, rows in zip(SPLITS, files, strict=True)}
    dataset = prepare(labelled(paths.pop("train"), **paths, near_duplicates=near_duplicates))
    found = {(row.row, row.reason, row.detail) for row in dataset.audit.dropped}
    across = {
        ("train.csv:1", "also in test", "the same text as test.csv:1"),
        ("validation.csv:1", "also in test", "the same text as test.csv:1"),
        ("train.csv:2", "also in validation", "the same text as validation.csv:2"),
    }
    twin = ("train.csv:31", "near duplicate", "near duplicate of test.csv:2 in test")
    assert found == (across | {twin} if near_duplicates else across)
    assert dataset.test.height == 4


def test_instructions_without_an_input_are_compared_with_those_of_a_given_split(tmp_path: Path) -> None:
    train = pl.DataFrame(
        {
            "instruction": [sentence(number) for number in range(20)],
            "input": [sentence(50 + number) if number % 3 == 0 else None for number in range(20)],
            "output": [f"answer {number}" for number in range(20)],
        }
    )
    again = train[[1, 3]].with_columns(instruction=pl.lit("RT @someone: ") + pl.col("instruction"))
    names = {name: name for name in train.columns}
    settings = DataSettings(
        write(tmp_path / "train.csv", train),
        validation=write(tmp_path / "validation.csv", again),
        columns=names,
        rules=Generation.rules({}, names),
        contradicts=False,
    )
    dropped = [(row.row, row.reason) for row in prepare(settings).audit.dropped]
    assert dropped == [("train.csv:2", "near duplicate"), ("train.csv:4", "near duplicate")]


def test_shares_are_kept_in_every_class() -> None:
    dataset = prepared(table({"a": 500, "b": 97, "c": 33, "d": 3}))
    classes = dataset.audit.classes
    for label, size in {"a": 500, "b": 97, "c": 33}.items():
        for split in ("validation", "test"):
            assert classes[split][label] == pytest.approx(size / 10, abs=1)
    assert [classes[split]["d"] for split in SPLITS] == [1, 1, 1]
    assert dataset.validation.height == dataset.test.height == 63


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(3, 60), min_size=2),
    st.sampled_from([0.1, 0.2, 0.3]),
    st.integers(0, 50),
)
def test_every_class_of_three_is_in_every_split(counts: dict[str, int], share: float, seed: int) -> None:
    dataset = prepared(table(counts), split=SplitSettings(share, share), seed=seed)
    for split in SPLITS:
        assert dataset.audit.classes[split].keys() == counts.keys()
    wanted = max(round(share * sum(counts.values())), len(counts))
    assert dataset.test.height == dataset.validation.height == wanted


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_an_unstratified_cut_leaves_train_every_class(seed: int) -> None:
    counts = {"a": 20, "b": 2, "c": 2, "d": 3}
    dataset = prepared(table(counts), split=SplitSettings(0.3, 0.3, stratify=False), seed=seed)
    assert set(dataset.train["label"]) == {"a", "b", "c", "d"}


def test_columns_that_can_be_done_without_may_be_missing_in_a_given_split() -> None:
    columns = ("query", "document", "negative")
    rows = pl.DataFrame({name: [sentence(100 * n + row) for row in range(20)] for n, name in enumerate(columns)})
    rules = Embedding.rules({}, columns)
    settings = DataSettings(None, columns={name: name for name in columns}, rules=rules, contradicts=False)
    dataset = prepare(settings, rows[:15], validation=rows[15:].drop("negative"))
    assert dataset.validation["negative"].null_count() == 5
    assert dataset.train["negative"].null_count() == 0


def test_a_missing_split_is_cut_from_train_only(tmp_path: Path) -> None:
    test = write(tmp_path / "test.csv", table({"a": 3, "b": 3}))
    train = write(tmp_path / "train.csv", table({"a": 50, "b": 50}).with_columns(pl.col("text").str.reverse()))
    dataset = prepare(labelled(train, test=test))
    assert (dataset.train.height, dataset.validation.height, dataset.test.height) == (90, 10, 6)
    assert all(row.startswith("test.csv:") for row in dataset.test["row"])


def test_rows_leaves_given_splits_whole(tmp_path: Path) -> None:
    test = write(tmp_path / "test.csv", table({"a": 40, "b": 20}).with_columns(pl.col("text") + " again"))
    train = write(tmp_path / "train.csv", table({"a": 200, "b": 100}))
    dataset = prepare(labelled(train, test=test, rows=60, near_duplicates=False))
    assert (dataset.train.height + dataset.validation.height, dataset.test.height) == (60, 60)
    assert dataset.audit.not_used == {"beyond 60 rows": 240}


def test_rows_limits_the_total_and_keeps_proportions() -> None:
    dataset = prepared(table({"a": 300, "b": 100}), rows=100)
    assert dataset.audit.kept == {"train": 80, "validation": 10, "test": 10}
    assert dataset.audit.classes["train"] == {"a": 60, "b": 20}
    assert dataset.audit.not_used == {"beyond 100 rows": 300}


def test_other_seeds_give_other_splits() -> None:
    rows = table({"a": 50, "b": 50})
    assert not prepared(rows, seed=1).test.equals(prepared(rows, seed=2).test)
    assert prepared(rows, seed=1).test.equals(prepared(rows, seed=1).test)


@pytest.mark.slow
def test_another_hash_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = [f"RT @u{n}: {sentence(n % 60)}" + " &amp; more" * (n % 2) for n in range(90)]
    path = write(tmp_path / "dirty.csv", pl.DataFrame({"text": texts, "label": ["ab"[n % 60 % 2] for n in range(90)]}))
    script = (
        "import sys; from pathlib import Path; from alloytune.data.prepare import prepare;"
        "from alloytune.data.store import write_splits; from data.example_tables import labelled;"
        "write_splits(prepare(labelled(Path(sys.argv[1]))), Path(sys.argv[2]))"
    )
    for hash_seed in ("1", "2"):
        folder = str(tmp_path / hash_seed)
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", script, str(path), folder], check=True, env=environment)
    names = [f"{split}.parquet" for split in SPLITS] + ["audit.json"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_pairs_are_rows_of_both_texts() -> None:
    rows = table({"a": 20, "b": 20}).with_columns(pl.col("text").str.reverse().alias("other"))
    same = pl.concat([rows, rows[:1], rows[:1].with_columns(other=pl.lit("another second text"))])
    dataset = prepared(same, text_pair="other")
    assert dataset.train.columns == ["row", "text", "text_pair", "label"]
    assert [(row.row, row.reason) for row in dataset.audit.dropped] == [("table:41", "duplicate")]
    missing = prepared(pl.concat([rows, rows[:1].with_columns(other=pl.lit(" "))]), text_pair="other")
    assert [(row.reason, row.detail) for row in missing.audit.dropped] == [("missing text", "text_pair")]


def test_written_splits_are_read_back(tmp_path: Path) -> None:
    dirty = pl.concat(
        [table({"10": 30, "2": 30, "1": 4}), pl.DataFrame({"text": ["", "a &amp; b"], "label": ["2", "2"]})]
    )
    dataset = prepared(dirty)
    write_splits(dataset, tmp_path / "data")
    again = load_splits(tmp_path / "data")
    for split in SPLITS:
        assert getattr(again, split).equals(getattr(dataset, split))
    assert again.audit == dataset.audit
    assert Classification.learn({"class_weights": None}, again.train).labels == ("1", "2", "10")
    written = json.loads((tmp_path / "data" / "audit.json").read_text(encoding="utf-8"))
    assert written["dropped"] == [
        {"row": "table:65", "split": "train", "reason": "missing text", "detail": "text", "text": ""}
    ]
    assert written["dropped_by_reason"] == {"missing text": 1}


def test_broken_splits_are_refused(tmp_path: Path) -> None:
    write_splits(prepared(table({"a": 20, "b": 20})), tmp_path)
    (tmp_path / "test.parquet").write_bytes((tmp_path / "test.parquet").read_bytes()[:100])
    with pytest.raises(InputError, match="prepare the data again"):
        load_splits(tmp_path)


def test_an_audit_that_does_not_add_up_is_refused() -> None:
    audit = prepared(table({"a": 20, "b": 20})).audit
    with pytest.raises(AssertionError, match="read 41 rows and parted off 0, but kept 40"):
        replace(audit, read={"table": 41})
    assert isinstance(audit, Audit)


def test_warnings_name_the_trouble() -> None:
    warnings = "\n".join(prepared(table({"a": 300, "b": 2, "c": 12})).audit.warnings)
    assert 'class "a" has 241 times as many training rows as "b"' in warnings
    assert 'fewer than 10 training rows for 1 class(es): "b"' in warnings
    assert 'validation has no row of 1 class(es): "b"' in warnings


def test_a_split_of_one_class_or_few_rows_is_no_judge() -> None:
    others = table({"a": 45})[40:]
    warnings = "\n".join(prepare(labelled(None), table({"a": 20, "b": 20}), others).audit.warnings)
    assert 'validation has rows of one class alone, "a": whoever always answers it scores best' in warnings
    assert "validation has 5 rows: its scores are rough" in warnings


def test_repairs_are_counted_with_examples() -> None:
    dirty = table({"a": 20, "b": 20}).with_columns(pl.col("text") + " d\u00c3\u00a9j\u00c3\u00a0 vu")
    audit = prepared(dirty).audit
    assert audit.repaired == 40
    assert len(audit.repairs) == 10
    assert audit.repairs[0].after.endswith("d\u00e9j\u00e0 vu")
    assert prepared(dirty, repair=False).audit.repaired == 0


def test_a_long_repair_is_shown_where_it_was_made() -> None:
    dirty = table({"a": 20, "b": 20}).with_columns(pl.col("text") + " so" * EXCERPT + " d\u00c3\u00a9j\u00c3\u00a0 vu")
    shown = prepared(dirty).audit.repairs[0]
    assert shown.before.endswith("so d\u00c3\u00a9j\u00c3\u00a0 vu")
    assert shown.after.endswith("so d\u00e9j\u00e0 vu")
    assert len(shown.after) <= EXCERPT


def test_reasons_are_counted() -> None:
    copies = [
        ("x  y", "a"),
        ("x y", "a"),
        ("x y", "b"),
        ("x y", "b"),
        ("x y ", "a"),
        ("once more", "a"),
        ("once  more", "a"),
    ]
    dirty = pl.concat([table({"a": 20, "b": 20}), pl.DataFrame(copies, schema=["text", "label"], orient="row")])
    audit = prepared(dirty).audit
    assert audit.dropped_by_reason() == {"conflicting labels": 5, "duplicate": 1}
    assert {row.detail for row in audit.dropped} == {"labelled a, b", "of table:46"}
    assert Counter(row.row for row in audit.dropped).most_common(1)[0][1] == 1


def test_a_split_that_overrules_its_share_is_said() -> None:
    many = prepared(table({str(number): 4 for number in range(100)})).audit
    assert many.kept["test"] == 100
    assert any(warning.startswith("test has 100 of 400 rows, 25% and not 10%") for warning in many.warnings)
    assert not [warning for warning in prepared(table({"a": 200, "b": 200})).audit.warnings if "and not" in warning]
