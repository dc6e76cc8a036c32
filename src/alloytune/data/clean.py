"""Take out the rows that no model should learn from or be judged on, each with its reason.

Tables here have the columns row and split, then those of the task (see `alloytune.data.rules`); all strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import polars as pl

from alloytune.data.near import find_near_across
from alloytune.data.repair import repair_column
from alloytune.data.rules import EXCERPT, Dropped, Rules, Sieved, list_dropped, sieve

# Of two equal rows in different given splits, the one in the split named first here is kept.
PRECEDENCE = ("test", "validation", "train")


@dataclass(frozen=True)
class Repair:
    """A text before and after its characters were mended; of a long one, the place where they differ."""

    row: str
    before: str
    after: str


def strip(table: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """Take the white space off the ends of texts and answers, where it is nothing."""
    if not rules.strips:
        return table
    names = [name for name in (*rules.mended, *rules.answers) if name in table.columns]
    return table.with_columns(pl.col(*names).str.strip_chars()) if names else table


def repair(table: pl.DataFrame, rules: Rules) -> tuple[pl.DataFrame, list[Repair]]:
    """Mend the characters of a stripped table's texts; give also every text that changed."""
    repairs: list[Repair] = []
    for name in rules.mended:
        before, after = table[name], repair_column(table[name], unescapes=rules.unescapes)
        changed = (before != after).fill_null(value=False)
        columns = (table["row"].filter(changed), before.filter(changed), after.filter(changed))
        repairs += [Repair(row, *_where_they_differ(old, new)) for row, old, new in zip(*columns, strict=True)]
        table = table.with_columns(after)
    return table, repairs


def _where_they_differ(before: str, after: str) -> tuple[str, str]:
    """Give an excerpt of two texts: it starts a few characters before the first that differs."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    start = max(0, same - EXCERPT // 4) if max(len(before), len(after)) > EXCERPT else 0
    return before[start : start + EXCERPT], after[start : start + EXCERPT]


def drop_missing(table: pl.DataFrame, rules: Rules) -> Sieved:
    """Drop rows without a visible character in a text, or without an answer."""
    # White space, control and format characters (such as a zero-width space) are nothing to read.
    empty = [
        (pl.col(name).is_null() | ~pl.col(name).str.contains(r"[^\s\p{Cc}\p{Cf}]"), name)
        for name in rules.texts
        if name not in rules.optional
    ]
    detail = pl.lit("")
    for condition, name in empty:
        detail = pl.when(condition).then(pl.lit(name)).otherwise(detail)
    no_text = pl.any_horizontal(condition for condition, _ in empty)
    table, dropped = sieve(table, no_text, "missing text", detail)
    for name in rules.answers:
        if name in table.columns and name not in rules.optional:
            no_answer = pl.col(name).is_null() | (pl.col(name) == "")
            table, more = sieve(table, no_answer, f"missing {name}", pl.lit(""))
            dropped += more
    return table, dropped


def drop_contradicting(table: pl.DataFrame, rules: Rules) -> Sieved:
    """Drop, within each split, every copy of a text that stands there with several answers.

    Texts are the same when they differ in white space alone.
    """
    among = ["split", "key"]
    table = table.with_columns(_key(rules.texts), _key(rules.answers).alias("answer"))
    answers = pl.col("answer").unique().sort().str.join(", ").str.head(EXCERPT).over(among)
    conflicting = pl.col("answer").n_unique().over(among) > 1
    table, dropped = sieve(table, conflicting, "conflicting labels", pl.lit("labelled ") + answers)
    return table.drop("key", "answer"), dropped


def unite_answers(table: pl.DataFrame, rules: Rules) -> Sieved:
    """Leave, within each split, one row of a text that stands there with several answers, with one made of all."""
    assert rules.unite is not None
    (name,), among = rules.answers, ["split", "key"]
    table = table.with_columns(_key(rules.texts))
    differ = pl.col(name).n_unique() > 1
    several = table.group_by(among, maintain_order=True).agg(pl.col("row").first().alias("first"), name, differ=differ)
    several = several.filter("differ").drop("differ")
    united = pl.Series("united", [rules.unite(answers) for answers in several[name].to_list()], pl.String)
    table = table.join(several.drop(name).with_columns(united), on=among, how="left", maintain_order="left")
    answer = pl.coalesce("united", name).alias(name)
    is_other = pl.col("row") != pl.col("first").fill_null(pl.col("row"))
    detail = pl.lit("with ") + pl.col("first")
    table, others = sieve(table.with_columns(answer), is_other, "its answers stand in one row", detail)
    return table.drop("key", "first", "united"), others


def drop_repeated(table: pl.DataFrame, rules: Rules) -> Sieved:
    """Drop, within each split, all but the first of rows that are the same but for white space."""
    table = table.with_columns(_key((*rules.texts, *rules.answers)))
    first = pl.col("row").first().over(["split", "key"])
    table, copies = sieve(table, pl.col("row") != first, "duplicate", pl.lit("of ") + first)
    return table.drop("key"), copies


def drop_across(table: pl.DataFrame, rules: Rules) -> Sieved:
    """Drop from train what stands in validation or test, and from validation what stands in test."""
    rank = pl.col("split").replace_strict({name: place for place, name in enumerate(PRECEDENCE)})
    table = table.with_columns(_key(rules.texts), rank.alias("rank"))
    best = pl.struct("rank", "row", "split").sort_by("rank").first().over("key")
    table = table.with_columns(best.alias("best"))
    detail = pl.format("the same text as {}", pl.col("best").struct.field("row"))
    kept: list[pl.DataFrame] = []
    dropped: list[Dropped] = []
    for other in PRECEDENCE:
        also = pl.col("best").struct.field("split") == other
        table, more = sieve(table, also & (pl.col("split") != other), f"also in {other}", detail)
        dropped += more
        kept.append(table.filter(pl.col("split") == other))
    return table.drop("key", "rank", "best"), dropped


def drop_near_across(table: pl.DataFrame, rules: Rules) -> Sieved:
    """Drop from a given split what is a near-duplicate of a row kept in one that comes first in PRECEDENCE."""
    splits, rows = table["split"].to_list(), table["row"].to_list()
    twins = find_near_across([table[name] for name in rules.texts], [PRECEDENCE.index(split) for split in splits])
    near = [number in twins for number in range(table.height)]
    details = [f"near duplicate of {rows[t]} in {splits[t]}" for t in (twins[n] for n in sorted(twins))]
    dropped = list_dropped(table.filter(near), "near duplicate", details)
    return table.filter([not dropped for dropped in near]), dropped


def _key(names: Sequence[str]) -> pl.Expr:
    """Give some columns as one text, with every run of white space as one blank."""
    collapsed = [pl.col(name).fill_null("").str.replace_all(r"\s+", " ") for name in names]
    return pl.concat_str(collapsed, separator="\x1f").alias("key")
