"""Cut splits off the training rows, and draw fewer rows: by class, by group, by seed."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from alloytune.data.quotas import share_out, split_quotas

Quotas = dict[str, dict[str, int]]

SHARE_OFF = 0.25  # of what was asked for
FEW_ROWS = 10
FEW_JUDGED = 30  # rows of a split, below which a share of right answers has a standard error of up to 0.09


def cut_splits(
    labels: Sequence[str],
    taught: Sequence[frozenset[str]],
    groups: Sequence[int],
    shares: Mapping[str, float],
    *,
    stratify: bool,
    seed: int,
) -> list[str]:
    """Name a split for each row: one of `shares`, or train.

    Rows of one group stay together. Each split gets its share of the rows to within a group, and of every class
    if `stratify`; train has a row of all that is taught. The same rows and seed give the same splits.
    """
    strata = list(labels) if stratify else [""] * len(labels)
    quotas = split_quotas(Counter(strata), shares, cover=stratify)
    members: dict[int, list[int]] = defaultdict(list)
    for number in np.random.default_rng(seed).permutation(len(labels)).tolist():
        members[groups[number]].append(number)
    # Large groups first: single rows fill what they leave. The sort is stable, so equal sizes stay shuffled.
    ordered = sorted(members.values(), key=len, reverse=True)
    contents = [Counter(strata[number] for number in group) for group in ordered]
    places = _place_groups(contents, quotas)
    _fill_missing(contents, places, quotas)
    _teach_everything([frozenset().union(*(taught[number] for number in group)) for group in ordered], places)
    splits = ["train"] * len(labels)
    for group, place in zip(ordered, places, strict=True):
        for number in group:
            splits[number] = place
    return splits


def draw_rows(
    table: pl.DataFrame, labels: Sequence[str], taught: Sequence[frozenset[str]], rows: int, seed: int
) -> pl.DataFrame:
    """Draw so many rows, in proportion from every class of every split, at least one from each; keep their order.

    Rows of train that teach what those drawn before do not are drawn first.
    """
    cells = [f"{split}\x1f{label}" for split, label in zip(table["split"], labels, strict=True)]
    sizes = Counter(cells)
    left = share_out(sizes, rows, least=1, most=sizes)
    taken = []
    order = np.random.default_rng(seed).permutation(table.height).tolist()
    for number in _teaching_first(order, table["split"].to_list(), taught):
        if left[cells[number]] > 0:
            left[cells[number]] -= 1
            taken.append(number)
    return table[sorted(taken)]


def warn_of_shares(sizes: Mapping[str, int], shares: Mapping[str, float]) -> list[str]:
    """Say which splits came out much larger or smaller than the share of the rows that was asked for them."""
    whole = sum(sizes[split] for split in ("train", *shares))
    return [
        f"{split} has {sizes[split]:,} of {whole:,} rows, {sizes[split] / whole:.0%} and not {share:.0%}: "
        "every class is to have a row in train, or in each split, and near-duplicates stay together"
        for split, share in shares.items()
        if abs(sizes[split] - share * whole) > max(SHARE_OFF * share * whole, FEW_ROWS)
    ]


def warn_of_few(sizes: Mapping[str, int]) -> list[str]:
    """Say which splits are too small to judge by."""
    judged = {split: sizes[split] for split in ("validation", "test") if 0 < sizes[split] < FEW_JUDGED}
    return [
        f"{split} has {rows} {'row' if rows == 1 else 'rows'}: its scores are rough" for split, rows in judged.items()
    ]


def _place_groups(contents: list[Counter[str]], quotas: Quotas) -> list[str]:
    """Give each group to the split that lacks the largest part of its quota and has room, else to train."""
    sizes: Counter[str] = Counter()
    for content in contents:
        sizes.update(content)
    wanted = quotas | {
        "train": {label: size - sum(quota[label] for quota in quotas.values()) for label, size in sizes.items()}
    }
    left = {name: dict(quota) for name, quota in wanted.items()}
    places = []
    for content in contents:
        fitting = [name for name in left if all(left[name][label] >= number for label, number in content.items())]
        place = max(
            fitting,
            key=lambda name: min(left[name][label] / wanted[name][label] for label in content),
            default="train",
        )
        for label, number in content.items():
            left[place][label] -= number
        places.append(place)
    return places


def _fill_missing(contents: list[Counter[str]], places: list[str], quotas: Quotas) -> None:
    """Move a class's smallest group out of train to each split that lacks the class, if train keeps another."""
    at: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, (content, place) in enumerate(zip(contents, places, strict=True)):
        for label in content:
            at[place, label].append(number)
    for name, quota in quotas.items():
        for label in quota:
            in_train = at["train", label]
            if quota[label] and not at[name, label] and len(in_train) > 1:
                # Large groups come first, so the last is the smallest; one of this class alone disturbs no other.
                alone = [number for number in in_train if len(contents[number]) == 1]
                if alone:
                    places[alone[-1]] = name
                    in_train.remove(alone[-1])
                    at[name, label].append(alone[-1])


def _teach_everything(contents: list[frozenset[str]], places: list[str]) -> None:
    """Bring back to train a group that teaches what a cut took out of it entirely."""
    taught = {label for content, place in zip(contents, places, strict=True) if place == "train" for label in content}
    for number, content in enumerate(contents):
        if not content <= taught:
            places[number] = "train"
            taught |= content


def _teaching_first(order: list[int], splits: list[str], taught: Sequence[frozenset[str]]) -> list[int]:
    """Put the rows of train that teach what none before them does in front of all others."""
    known: set[str] = set()
    teaching, others = [], []
    for number in order:
        if splits[number] == "train" and not taught[number] <= known:
            known |= taught[number]
            teaching.append(number)
        else:
            others.append(number)
    return teaching + others
