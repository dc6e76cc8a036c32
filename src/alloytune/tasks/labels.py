"""The classes: their order, and what makes them unfit to learn from."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from alloytune.data.rules import Counts, Given
from alloytune.errors import InputError

NAMED = 5
FEW_ROWS = 10
IMBALANCE = 20


def sort_naturally(labels: Iterable[str]) -> list[str]:
    """Sort as people do, "2" before "10"."""
    return sorted(labels, key=_natural_key)


def count_labels(labels: Iterable[str]) -> dict[str, int]:
    """Count the rows of each label, labels in natural order."""
    counts = Counter(labels)
    return {label: counts[label] for label in sort_naturally(counts)}


def require_labels(given: Given) -> None:
    """Raise an InputError where the column `label` of a split has too few labels, or such as train does not have."""
    if given.split == "train":
        require_classes(given.where, given.rows["label"], cut=given.cut)
    else:
        require_known(given.where, given.split, given.rows["label"], given.train["label"])


def require_classes(where: str, labels: pl.Series, *, cut: Sequence[str]) -> None:
    """Raise an InputError unless there are two classes, and rows enough of each for train and the splits to be cut."""
    counts = dict(labels.value_counts().rows())
    if len(counts) == 1:
        raise InputError(where, f'every row is of the one class "{labels[0]}"', "give examples of at least two classes")
    single = [label for label in sort_naturally(counts) if counts[label] == 1]
    if cut and single:
        noun = "class has" if len(single) == 1 else "classes have"
        what = f"{len(single)} {noun} a single row, which cannot be split: {name_some(single)}"
        raise InputError(where, what, _remedy_for_single(labels, single, counts))


def _remedy_for_single(labels: pl.Series, single: Sequence[str], counts: Mapping[str, int]) -> str:
    if meant := _meant(single, [label for label in counts if counts[label] > 1]):
        return f"did you mean {name_some(meant)}? correct them, or remove these rows"
    if labels.str.contains(r"^[-+]?\d+\.\d+$").any() and labels.cast(pl.Float64, strict=False).is_not_null().all():
        return "give task: regression, as these look like ratings"
    if len(labels) >= FEW_ROWS and 2 * len(single) > len(labels):
        return "name another column, as these look like no classes"
    return "collect more rows of each, or remove these rows"


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
    judged = [split for split in ("validation", "test") if counts[split]]
    return [*warnings, *filter(None, (_warn_of_absent(split, list(counts[split]), list(train)) for split in judged))]


def _warn_of_absent(split: str, present: Sequence[str], classes: Sequence[str]) -> str:
    """Say which classes a split lacks; empty where it lacks none."""
    if len(present) == 1 < len(classes):
        return f"{split} has rows of one class alone, {name_some(present)}: whoever always answers it scores best"
    missing = [label for label in classes if label not in present]
    return f"{split} has no row of {len(missing)} class(es): {name_some(missing)}" if missing else ""


def warn_of_labels(read: pl.DataFrame, kept: pl.DataFrame, counts: Counts) -> list[str]:
    """Say what may make the classes in the column `label` hard to learn or to judge, and which are lost."""
    warnings = warn_of_classes(counts)
    before = set(read["label"].drop_nulls().str.strip_chars())
    if lost := sort_naturally(before - set(kept["label"]) - {""}):
        warnings.append(f"no row is left of {len(lost)} class(es): {name_some(lost)}")
    return warnings


def label_config(labels: Sequence[str]) -> dict[str, Any]:
    """Give labels in the form that transformers keeps in a model's config."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def require_among(column: str, labels: Sequence[str], rows: Iterable[Iterable[str]]) -> None:
    """Raise an InputError where rows have labels that the model does not know; it names `column` as the place."""
    unknown = [foreign for row in rows if (foreign := set(row) - set(labels))]
    if unknown:
        num = "1 row has" if len(unknown) == 1 else f"{len(unknown)} rows have"
        named = sort_naturally(set().union(*unknown))
        meant = _meant(named, labels)
        raise InputError(
            column,
            f"{num} what the model does not know: {name_some(named)}",
            (f"did you mean {name_some(meant)}? " if meant else "")
            + f"remove such rows, or correct them to what it knows: {name_some(labels)}",
        )


def _meant(written: Iterable[str], labels: Iterable[str]) -> list[str]:
    """Give the labels that some differ from in capitals alone."""
    folded = {label.casefold(): label for label in labels}
    return [folded[label.casefold()] for label in written if label.casefold() in folded]


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
