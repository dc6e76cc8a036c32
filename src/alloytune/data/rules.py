"""What a task says of its rows: which columns are read and learned, what makes a row or a split unfit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

EXCERPT = 200

Counts = Mapping[str, Mapping[str, int]]  # by split, then by class


@dataclass(frozen=True)
class Dropped:
    """A row left out, and why; `text` is its beginning."""

    row: str
    split: str
    reason: str
    detail: str
    text: str


Sieved = tuple[pl.DataFrame, list[Dropped]]


@dataclass(frozen=True)
class Given:
    """The rows of one given split, as they are after cleaning, with those of train and the splits to be cut from it.

    `where` names the split's file in errors.
    """

    where: str
    split: str
    rows: pl.DataFrame
    train: pl.DataFrame
    cut: Sequence[str]


def keep_all(table: pl.DataFrame) -> Sieved:
    """Drop nothing."""
    return table, []


@dataclass(frozen=True)
class Rules:
    """How the rows of a task are cleaned, split and counted; a table's cells are strings, lists among them as JSON.

    `texts` are the columns that a model reads: a row needs all but those that are `optional`, and rows are compared by
    them. `stand_ins` names for some columns the one that holds the same among other things, for tables without them.
    `answers` are those that it learns. `mended` are the columns whose white space and characters may be changed;
    `unescapes` tells whether HTML entities in them are damage, which they are not where markup may be asked for.
    `strips` tells whether white space at the ends of texts and answers is nothing. `sift` brings answers into one form
    and drops rows whose answers cannot be used; columns may be absent. `answered` drops rows that hold a question
    without its answer, where both stand in one column, and makes several of one that has several answers; it is not
    asked about rows that are to be answered. `unite` gives the one answer for several of one text; where None, they are
    a mistake, or several answers to learn. `strata` gives the label of every row, where a row has one. `taught` gives
    what every row teaches that train must not lack, such as its labels; where None, it is the label. `require` raises
    an InputError for rows that nothing can be learned from or judged on; `count` counts what should stand in the audit,
    by class; `warn` says, of the rows as they were read, the rows kept and their counts, what may make them hard to
    learn.
    """

    texts: tuple[str, ...]
    answers: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    mended: tuple[str, ...] = ()
    unescapes: bool = True
    strips: bool = True
    sift: Callable[[pl.DataFrame], Sieved] = keep_all
    answered: Callable[[pl.DataFrame], Sieved] = keep_all
    unite: Callable[[Sequence[str]], str] | None = None
    strata: Callable[[pl.DataFrame], list[str]] | None = None
    taught: Callable[[pl.DataFrame], list[frozenset[str]]] | None = None
    require: Callable[[Given], None] = lambda given: None
    count: Callable[[pl.DataFrame], dict[str, int]] = lambda rows: {}
    warn: Callable[[pl.DataFrame, pl.DataFrame, Counts], list[str]] = lambda read, kept, counts: []


def sieve(table: pl.DataFrame, condition: pl.Expr, reason: str, detail: pl.Expr) -> Sieved:
    """Drop the rows for which a condition holds, each with the reason and its own detail."""
    marked = table.with_columns(condition.alias("dropped"), detail.alias("detail"))
    out = marked.filter("dropped")
    kept = marked.filter(~pl.col("dropped")).drop("dropped", "detail")
    return kept, list_dropped(out, reason, out["detail"].to_list())


def sieve_by(table: pl.DataFrame, details: Sequence[str | None], reason: str) -> Sieved:
    """Drop the rows that have a detail to tell."""
    drops = [detail is not None for detail in details]
    dropped = list_dropped(table.filter(drops), reason, [detail for detail in details if detail is not None])
    return table.filter([not drop for drop in drops]), dropped


def list_dropped(table: pl.DataFrame, reason: str, details: Sequence[str]) -> list[Dropped]:
    """List rows as dropped; the text shown is that of the first column after row and split."""
    shown = table.columns[2]
    columns = (table["row"], table["split"], details, table[shown].fill_null(""))
    return [
        Dropped(row, split, reason, detail, text[:EXCERPT]) for row, split, detail, text in zip(*columns, strict=True)
    ]
