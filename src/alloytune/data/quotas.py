"""How many rows of each class to give to a split, in whole numbers that add up."""

from collections.abc import Mapping, Sequence


def share_out(sizes: Mapping[str, int], total: int, least: int, most: Mapping[str, int]) -> dict[str, int]:
    """Divide `total` in proportion to `sizes`, by largest remainder.

    Each gets at least `least` and at most its `most`, so the sum can differ from `total` when they demand it.

    >>> share_out({"a": 90, "b": 8}, 10, least=1, most={"a": 90, "b": 8})
    {'a': 9, 'b': 1}
    """
    whole = max(sum(sizes.values()), 1)
    exact = {name: total * size / whole for name, size in sizes.items()}
    quotas = {name: max(min(int(exact[name]), most[name]), min(least, most[name])) for name in sizes}
    while sum(quotas.values()) < total:
        open_to_more = [name for name in sizes if quotas[name] < most[name]]
        if not open_to_more:
            break
        quotas[max(open_to_more, key=lambda name: exact[name] - quotas[name])] += 1
    while sum(quotas.values()) > total:
        open_to_less = [name for name in sizes if quotas[name] > least]
        if not open_to_less:
            break
        quotas[max(open_to_less, key=lambda name: quotas[name] - exact[name])] -= 1
    return quotas


def split_quotas(sizes: Mapping[str, int], shares: Mapping[str, float], *, cover: bool) -> dict[str, dict[str, int]]:
    """Give the rows of each class (of `sizes`) for each split of `shares`; what is left is for train.

    With `cover`, a class gets a row in train first, then in each split in turn as far as its rows go.
    """
    quotas: dict[str, dict[str, int]] = {}
    names: Sequence[str] = list(shares)
    for place, name in enumerate(names):
        later = len(names) - place - 1
        taken = {label: sum(given[label] for given in quotas.values()) for label in sizes}
        most = {label: max(size - taken[label] - 1, 0) for label, size in sizes.items()}
        # Leave the splits still to come a row as well, where there are rows for all.
        most = {label: max(room - later, min(room, 1)) for label, room in most.items()}
        total = max(round(shares[name] * sum(sizes.values())), 1)
        quotas[name] = share_out(sizes, total, least=int(cover), most=most)
    return quotas
