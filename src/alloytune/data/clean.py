"""Take out the rows that no model should learn from or be judged on, each with its reason.

Tables here have the columns row, split, text, text_pair (for pairs), label; all strings.
"""

from dataclasses import dataclass

import polars as pl

from alloytune.data.near import NearIndex
from alloytune.data.repair import repair_column

# Of two equal rows in different given splits, the one in the split named first here is kept.
PRECEDENCE = ("test", "validation", "train")
EXCERPT = 200


@dataclass(frozen=True)
class Dropped:
    """A row left out, and why; `text` is its beginning."""

    row: str
    split: str
    reason: str
    detail: str
    text: str


@dataclass(frozen=True)
class Repair:
    """A text before and after its characters were mended."""

    row: str
    before: str
    after: str


Sieved = tuple[pl.DataFrame, list[Dropped]]


def text_columns(table: pl.DataFrame) -> list[str]:
    """Give the columns that hold text: text, and text_pair where there is one."""
    return [name for name in ("text", "text_pair") if name in table.columns]


def strip(table: pl.DataFrame) -> pl.DataFrame:
    """Take the white space off the ends of texts and labels."""
    return table.with_columns(pl.col("label", *text_columns(table)).str.strip_chars())


def repair(table: pl.DataFrame) -> tuple[pl.DataFrame, list[Repair]]:
    """Mend the characters of a stripped table's texts; give also every text that changed."""
    repairs: list[Repair] = []
    for name in text_columns(table):
        before, after = table[name], repair_column(table[name])
        changed = (before != after).fill_null(value=False)
        columns = (table["row"].filter(changed), before.filter(changed), after.filter(changed))
        repairs += [Repair(row, old[:EXCERPT], new[:EXCERPT]) for row, old, new in zip(*columns, strict=True)]
        table = table.with_columns(after)
    return table, repairs


def drop_missing(table: pl.DataFrame) -> Sieved:
    """Drop rows without a label or without a visible character in a text."""
    # White space, control and format characters (such as a zero-width space) are nothing to read.
    empty = [
        (pl.col(name).is_null() | ~pl.col(name).str.contains(r"[^\s\p{Cc}\p{Cf}]"), name)
        for name in text_columns(table)
    ]
    no_label = pl.col("label").is_null() | (pl.col("label") == "")
    detail = pl.lit("")
    for condition, name in empty:
        detail = pl.when(condition).then(pl.lit(name)).otherwise(detail)
    no_text = pl.any_horizontal(condition for condition, _ in empty)
    table, textless = _sieve(table, no_text, "missing text", detail)
    table, unlabelled = _sieve(table, no_label, "missing label", pl.lit(""))
    return table, textless + unlabelled


def drop_repeated(table: pl.DataFrame) -> Sieved:
    """Drop, within each split, every copy of a text under several labels, and all but the first of the other copies.

    Texts are the same when they differ in white space alone.
    """
    among = ["split", "key"]
    table = table.with_columns(_key(table))
    labels = pl.col("label").unique().sort().str.join(", ").over(among)
    conflicting = pl.col("label").n_unique().over(among) > 1
    table, conflicts = _sieve(table, conflicting, "conflicting labels", pl.lit("labelled ") + labels)
    first = pl.col("row").first().over(among)
    table, copies = _sieve(table, pl.col("row") != first, "duplicate", pl.lit("of ") + first)
    return table.drop("key"), conflicts + copies


def drop_across(table: pl.DataFrame) -> Sieved:
    """Drop from train what stands in validation or test, and from validation what stands in test."""
    rank = pl.col("split").replace_strict({name: place for place, name in enumerate(PRECEDENCE)})
    table = table.with_columns(_key(table), rank.alias("rank"))
    best = pl.struct("rank", "row", "split").sort_by("rank").first().over("key")
    table = table.with_columns(best.alias("best"))
    detail = pl.format("the same text as {}", pl.col("best").struct.field("row"))
    kept: list[pl.DataFrame] = []
    dropped: list[Dropped] = []
    for other in PRECEDENCE:
        also = pl.col("best").struct.field("split") == other
        table, more = _sieve(table, also & (pl.col("split") != other), f"also in {other}", detail)
        dropped += more
        kept.append(table.filter(pl.col("split") == other))
    return table.drop("key", "rank", "best"), dropped


def drop_near_across(table: pl.DataFrame) -> Sieved:
    """Drop from a given split what is a near-duplicate of a row kept in one that comes first in PRECEDENCE."""
    index = NearIndex([table[name] for name in text_columns(table)])
    splits, rows = table["split"].to_list(), table["row"].to_list()
    twins: dict[int, int] = {}
    for split in PRECEDENCE:
        members = [number for number, name in enumerate(splits) if name == split]
        found = {number: index.find(number) for number in members}
        twins |= {number: twin for number, twin in found.items() if twin is not None}
        for number in members:
            if found[number] is None:
                index.add(number)
    near = [number in twins for number in range(table.height)]
    details = [f"near duplicate of {rows[t]} in {splits[t]}" for t in (twins[n] for n in sorted(twins))]
    dropped = _list_dropped(table.filter(near), "near duplicate", details)
    return table.filter([not dropped for dropped in near]), dropped


def _key(table: pl.DataFrame) -> pl.Expr:
    """Give the text, and the pair's other text, with every run of white space as one blank."""
    collapsed = [pl.col(name).str.replace_all(r"\s+", " ") for name in text_columns(table)]
    return pl.concat_str(collapsed, separator="\x1f").alias("key")


def _sieve(table: pl.DataFrame, condition: pl.Expr, reason: str, detail: pl.Expr) -> Sieved:
    marked = table.with_columns(condition.alias("dropped"), detail.alias("detail"))
    out = marked.filter("dropped")
    kept = marked.filter(~pl.col("dropped")).drop("dropped", "detail")
    return kept, _list_dropped(out, reason, out["detail"].to_list())


def _list_dropped(table: pl.DataFrame, reason: str, details: list[str]) -> list[Dropped]:
    columns = (table["row"], table["split"], details, table["text"].fill_null(""))
    return [
        Dropped(row, split, reason, detail, text[:EXCERPT]) for row, split, detail, text in zip(*columns, strict=True)
    ]
