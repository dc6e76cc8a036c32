"""From table files to clean train, validation and test splits, with an account of every row."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from alloytune.data.audit import Audit
from alloytune.data.clean import (
    Repair,
    drop_across,
    drop_contradicting,
    drop_missing,
    drop_near_across,
    drop_repeated,
    repair,
    strip,
    unite_answers,
)
from alloytune.data.gather import Source, read_sources
from alloytune.data.near import group_near
from alloytune.data.rules import Dropped, Given, Rules, Sieved
from alloytune.data.settings import DataSettings
from alloytune.data.split import cut_splits, draw_rows, warn_of_few, warn_of_shares
from alloytune.errors import InputError

SPLITS = ("train", "validation", "test")
EXAMPLES = 10
LARGE_GROUP = 0.1
SHOWN_REASONS = 3


@dataclass(frozen=True)
class Dataset:
    """Clean splits, each with the column row and those of the task, such as text and label, all strings.

    `row` says where a row came from, as in "tweets.csv:17": the file and the number of the record after the header.
    """

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    audit: Audit


def prepare(
    settings: DataSettings,
    train: pl.DataFrame | None = None,
    validation: pl.DataFrame | None = None,
    test: pl.DataFrame | None = None,
) -> Dataset:
    """Read, clean, check and split the data; raise an InputError for data that cannot be used.

    Tables take the place of files. No row, exact or near, stands in two splits, and the same input and seed give the
    same splits.
    """
    sources = read_sources(settings, {"train": train, "validation": validation, "test": test})
    rows, repairs, dropped, parted = _clean(sources, settings)
    given = {source.split for source in sources}
    shares = {"validation": settings.split.validation, "test": settings.split.test}
    cut = {split: share for split, share in shares.items() if split not in given and share > 0}
    if "validation" not in [*given, *cut]:
        raise InputError("data.split.validation", "no row is left for validation", "give a share, or a file")
    try:
        _check(sources, rows, list(cut), settings.rules)
    except InputError as error:  # which may well be so because of what was dropped
        what = f"{error.what} (dropped: {_tell(dropped)})" if dropped else error.what
        raise InputError(error.where, what, error.remedy) from None
    groups = _group(rows, settings)
    rows = _assign(rows, groups, cut, settings)
    kept = _limit(rows, ["train", *cut], settings)
    tables = {split: kept.filter(pl.col("split") == split).drop("split") for split in SPLITS}
    classes = {split: settings.rules.count(table) for split, table in tables.items()}
    heights = {split: table.height for split, table in tables.items()}
    sizes = Counter(size for size in Counter(groups).values() if size > 1)
    audit = Audit(
        read={source.name: source.table.height for source in sources},
        kept=heights,
        classes=classes,
        dropped=dropped,
        not_used={f"beyond {settings.rows} rows": rows.height - kept.height} if kept.height < rows.height else {},
        parted=parted,
        repaired=len({one.row for one in repairs}),
        repairs=repairs[:EXAMPLES],
        near_groups=sizes.total(),
        near_rows=sum(size * number for size, number in sizes.items()),
        warnings=warn_of_shares(heights, cut)
        + warn_of_few(heights)
        + settings.rules.warn(pl.concat([source.table for source in sources]), kept, classes)
        + _warn(kept, settings.rules, max(sizes, default=0)),
    )
    return Dataset(**tables, audit=audit)


def _clean(sources: list[Source], settings: DataSettings) -> tuple[pl.DataFrame, list[Repair], list[Dropped], int]:
    """Give the clean rows, what was repaired and dropped, and how many rows came of parting others."""
    rules = settings.rules
    rows = strip(pl.concat([source.table for source in sources]), rules)
    rows, repairs = repair(rows, rules) if settings.repair else (rows, [])
    steps: list[Callable[[pl.DataFrame, Rules], Sieved]] = [
        drop_missing,
        lambda rows, rules: rules.sift(rows),
        lambda rows, rules: rules.answered(rows),
    ]
    if settings.contradicts:
        steps.append(drop_contradicting if rules.unite is None else unite_answers)
    steps.append(drop_repeated)
    if len(sources) > 1:
        steps += [drop_across, drop_near_across] if settings.near_duplicates else [drop_across]
    dropped: list[Dropped] = []
    parted = 0
    for step in steps:
        before = rows.height
        rows, more = step(rows, rules)
        dropped += more
        parted += max(rows.height + len(more) - before, 0)
        _require_left(sources, rows, more)
    return rows, repairs, dropped, parted


def _require_left(sources: list[Source], rows: pl.DataFrame, dropped: list[Dropped]) -> None:
    """Raise an InputError that says why, if a given split lost its last row in a step."""
    left = set(rows["split"])
    for source in sources:
        if source.split not in left:
            listed = _tell([row for row in dropped if row.split == source.split])
            raise InputError(
                source.where, f"no usable row is left ({listed})", "give other rows, or check the columns named"
            )


def _tell(dropped: Sequence[Dropped]) -> str:
    """Count dropped rows by their commonest reasons, each with the first of them."""
    counts = Counter(row.reason for row in dropped)
    first = {row.reason: row for row in reversed(dropped)}
    return ", ".join(
        f"{reason}: {count}, first {first[reason].row}" + (f" ({first[reason].detail})" if first[reason].detail else "")
        for reason, count in counts.most_common(SHOWN_REASONS)
    )


def _check(sources: list[Source], rows: pl.DataFrame, cut: list[str], rules: Rules) -> None:
    by_split = {source.split: rows.filter(pl.col("split") == source.split) for source in sources}
    for source in sources:
        rules.require(Given(source.where, source.split, by_split[source.split], by_split["train"], cut))
        if source.split == "train" and by_split["train"].height < 2 * (len(cut) + 1):
            raise InputError(
                source.where,
                f"{by_split['train'].height} usable rows are too few to cut {' and '.join(cut)} from",
                "give more rows, or a file for each split",
            )


def _labels(rows: pl.DataFrame, rules: Rules) -> list[str]:
    """Give each row's label; one and the same for all where rows have none."""
    return [""] * rows.height if rules.strata is None else rules.strata(rows)


def _taught(rows: pl.DataFrame, rules: Rules) -> list[frozenset[str]]:
    """Give what each row teaches that train must not lack."""
    return [frozenset({label}) for label in _labels(rows, rules)] if rules.taught is None else rules.taught(rows)


def _group(rows: pl.DataFrame, settings: DataSettings) -> list[int]:
    """Give each row its group of near-duplicates, which no split may divide."""
    if not settings.near_duplicates:
        return list(range(rows.height))
    return group_near([rows[name] for name in settings.rules.texts])


def _assign(rows: pl.DataFrame, groups: list[int], cut: dict[str, float], settings: DataSettings) -> pl.DataFrame:
    """Cut the missing splits from the rows of train."""
    if not cut:
        return rows
    in_train = [number for number, split in enumerate(rows["split"]) if split == "train"]
    places = cut_splits(
        _labels(rows[in_train], settings.rules),
        _taught(rows[in_train], settings.rules),
        [groups[number] for number in in_train],
        {split: cut[split] for split in ("test", "validation") if split in cut},
        stratify=settings.split.stratify and settings.rules.strata is not None,
        seed=settings.seed,
    )
    rows = rows.with_columns(rows["split"].scatter(in_train, places))
    if empty := [split for split in cut if split not in places]:
        raise InputError(
            "data.split",
            f"no row can be cut for {' and '.join(empty)}: so many are near-duplicates of one another, or the only "
            "ones that teach a label, which train needs",
            "give more rows, a file for each split, another seed, or near_duplicates: false",
        )
    return rows


def _limit(rows: pl.DataFrame, drawn: list[str], settings: DataSettings) -> pl.DataFrame:
    """Draw `rows` of the rows of these splits; given validation and test files stay whole."""
    of_train = pl.col("split").is_in(drawn)
    rows, whole = rows.filter(of_train), rows.filter(~of_train)
    if settings.rows is None or settings.rows >= rows.height:
        return pl.concat([rows, whole])
    labels = _labels(rows, settings.rules)
    least = len(set(zip(rows["split"], labels, strict=True)))
    if settings.rows < least:
        raise InputError(
            "data.rows",
            f"{settings.rows} rows cannot hold every class in every split",
            f"allow at least {least}",
        )
    drawn_rows = draw_rows(rows, labels, _taught(rows, settings.rules), settings.rows, settings.seed)
    kept = pl.concat([drawn_rows, whole])
    _require_taught(kept, settings.rows, settings.rules)
    return kept


def _require_taught(kept: pl.DataFrame, rows: int, rules: Rules) -> None:
    """Raise an InputError where so few rows leave train nothing to learn, or without what other splits ask for."""
    train = kept.filter(pl.col("split") == "train")
    rules.require(Given("data.rows", "train", train, train, ()))
    lacking = frozenset().union(*_taught(kept, rules)) - frozenset().union(*_taught(train, rules))
    if lacking:
        shown = ", ".join(f'"{label}"' for label in sorted(lacking)[:EXAMPLES])
        raise InputError("data.rows", f"{rows} rows leave train none with {shown}", "allow more rows")


def _warn(kept: pl.DataFrame, rules: Rules, largest: int) -> list[str]:
    warnings = []
    if largest > LARGE_GROUP * kept.height and largest > EXAMPLES:
        warnings.append(f"{largest} rows are near-duplicates of one another and stand in one split")
    broken = kept.select(pl.any_horizontal(pl.col(*rules.texts).str.contains("\ufffd"))).sum().item()
    if broken:
        warnings.append(f"{broken} texts hold the sign for an unreadable character; the encoding may be wrong")
    return warnings
