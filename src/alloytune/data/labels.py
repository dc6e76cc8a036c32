"""The classes: their order, and what makes them unfit to learn from."""

import re
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from alloytune.errors import InputError

Counts = Mapping[str, Mapping[str, int]]

NAMED = 5
FEW_ROWS = 10
IMBALANCE = 20
SHARE_OFF = 0.25  # of what was asked for


def sort_naturally(labels: Iterable[str]) -> list[str]:
    """Sort as people do, "2" before "10"."""
    return sorted(labels, key=_natural_key)


def count_classes(table: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Count the rows of each class in each split of a table, classes in natural order."""
    counts = {(split, label): number for split, label, number in table.group_by("split", "label").len().rows()}
    classes = sort_naturally({label for _, label in counts})
    return {
        split: {label: counts[split, label] for label in classes if (split, label) in counts}
        for split in ("train", "validation", "test")
    }


def require_classes(where: str, labels: pl.Series, *, cut: Sequence[str]) -> None:
    """Raise an InputError unless there are two classes, and rows enough for train and the splits to be cut."""
    counts = dict(labels.value_counts().rows())
    if len(counts) == 1:
        raise InputError(where, f'every row is of the one class "{labels[0]}"', "give examples of at least two classes")
    single = [label for label in sort_naturally(counts) if counts[label] == 1]
    if cut and single:
        noun = "class has" if len(single) == 1 else "classes have"
        raise InputError(
            where,
            f"{len(single)} {noun} a single row, which cannot be split: {name_some(single)}",
            "collect more rows of each, or remove the class",
        )
    if labels.len() < 2 * (len(cut) + 1):
        raise InputError(
            where,
            f"{labels.len()} usable rows are too few to cut {' and '.join(cut)} from",
            "give more rows, or a file for each split",
        )


def require_known(where: str, split: str, labels: pl.Series, classes: Iterable[str]) -> None:
    """Raise an InputError if a split has labels that are not among the classes of train."""
    unknown = sort_naturally(set(labels) - set(classes))
    if unknown:
        raise InputError(
            where,
            f"{split} has labels that train does not have: {name_some(unknown)}",
            "add examples of them to train, or remove them",
        )


def warn_of_classes(counts: Counts) -> list[str]:
    """Say what may make the classes hard to learn or to judge."""
    train, warnings = counts["train"], []
    rarest, commonest = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    if train[commonest] > IMBALANCE * train[rarest]:
        ratio = train[commonest] / train[rarest]
        warnings.append(f'class "{commonest}" has {ratio:.0f} times as many training rows as "{rarest}"')
    if few := [label for label in train if train[label] < FEW_ROWS]:
        warnings.append(f"fewer than {FEW_ROWS} training rows for {len(few)} class(es): {name_some(few)}")
    absent = {split: [label for label in train if label not in counts[split]] for split in ("validation", "test")}
    return warnings + [
        f"{split} has no row of {len(missing)} class(es): {name_some(missing)}"
        for split, missing in absent.items()
        if missing
    ]


def warn_of_shares(counts: Counts, shares: Mapping[str, float]) -> list[str]:
    """Say which splits came out much larger or smaller than the share of the rows that was asked for them."""
    sizes = {split: sum(counts[split].values()) for split in ("train", *shares)}
    whole = sum(sizes.values())
    return [
        f"{split} has {sizes[split]:,} of {whole:,} rows, {sizes[split] / whole:.0%} and not {share:.0%}: "
        "every class is to have a row in each split, and near-duplicates stay together"
        for split, share in shares.items()
        if abs(sizes[split] - share * whole) > max(SHARE_OFF * share * whole, FEW_ROWS)
    ]


def name_some(labels: Sequence[str]) -> str:
    """Name the first few labels, and how many more there are."""
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(f'"{label}"' for label in labels[:NAMED]) + more


def _natural_key(label: str) -> tuple[list[str | tuple[int, str]], str]:
    # Splitting by digits gives text and number in turn, so like is always compared with like.
    parts = re.split(r"(\d+)", label.casefold())
    return [_digits_key(part) if place % 2 else part for place, part in enumerate(parts)], label


def _digits_key(digits: str) -> tuple[int, str]:
    """Order digits as numbers without making one of them: Python refuses more than 4,300 digits."""
    significant = digits.lstrip("0")
    return len(significant), significant
