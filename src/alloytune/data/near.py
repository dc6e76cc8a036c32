"""Find near-duplicates: retweets, copies with a word changed, the same text with another link.

Two texts are near when the sets of their neighbouring word pairs have a Jaccard similarity of at least 0.8.
The search is exact: a prefix filter (Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", 2007)
cannot miss a pair. MinHash with 16 bands of 8 found 27,600 of the 32,018 near pairs in a table of 38,158 tweets;
32 bands of 4 found them all, but with nothing to promise it for the next table.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import polars as pl

# Whole numbers, so that exactly 4/5 counts as near without rounding.
NEAR_NUMERATOR, NEAR_DENOMINATOR = 4, 5

# Links and names change when a text is passed on. Only ASCII ends a link: Chinese text follows one without a blank.
PASSED_ON = r"https?://[!-~]+|www\.[!-~]+|\brt\s+@\w+:?|\B@\w+"

# Scripts written without blanks count by character; digits and symbols (emoji) carry meaning and stay.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
TOKEN = rf"[{UNSPACED}]|[[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]+|\p{{S}}"


class NearIndex:
    """Rows that can be looked up by near-duplicates of theirs; a row is its number in the columns given.

    With two columns, rows are near when they are near in both.
    """

    def __init__(self, columns: Sequence[pl.Series]) -> None:
        self._parts = [_shingle_sets(column) for column in columns]
        counts = Counter(shingle for shingles in self._parts[0] for shingle in shingles)
        # Rare shingles first: the few that a near-duplicate must share are then shared with few others.
        self._prefixes = [
            sorted(shingles, key=lambda shingle: (counts[shingle], shingle))[: _prefix_length(len(shingles))]
            for shingles in self._parts[0]
        ]
        self._rows: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._prefixes)

    def add(self, number: int) -> None:
        """Let a row be found."""
        for shingle in self._prefixes[number]:
            self._rows.setdefault(shingle, []).append(number)

    def find(self, number: int) -> int | None:
        """Give the lowest added row that is near, None if none is."""
        return next((other for other in sorted(self.candidates(number)) if self.are_near(number, other)), None)

    def candidates(self, number: int) -> set[int]:
        """Give every added row that may be near; no row outside is."""
        return {other for shingle in self._prefixes[number] for other in self._rows.get(shingle, ())}

    def are_near(self, one: int, other: int) -> bool:
        """Tell whether two rows are near in every column."""
        return all(_are_near(part[one], part[other]) for part in self._parts)

    def identical(self) -> Iterator[tuple[int, int]]:
        """Give each row with the first one that has the same shingles."""
        firsts: dict[tuple[frozenset[int], ...], int] = {}
        for number, shingles in enumerate(zip(*self._parts, strict=True)):
            yield number, firsts.setdefault(shingles, number)


def group_near(columns: Sequence[pl.Series]) -> list[int]:
    """Give each row the number of its group's first row; rows are in one group when a chain of near ones joins them."""
    index = NearIndex(columns)
    leaders = list(range(len(index)))

    def leader(number: int) -> int:
        while leaders[number] != number:
            leaders[number] = leaders[leaders[number]]
            number = leaders[number]
        return number

    for number, first in index.identical():
        if first != number:
            # A thousand retweets of one text are one row to compare, not half a million pairs.
            leaders[number] = first
            continue
        for other in index.candidates(number):
            one, two = leader(number), leader(other)
            if one != two and index.are_near(number, other):
                leaders[max(one, two)] = min(one, two)
        index.add(number)
    return [leader(number) for number in range(len(index))]


def _are_near(one: frozenset[int], other: frozenset[int]) -> bool:
    small, large = sorted((len(one), len(other)))
    if small * NEAR_DENOMINATOR < large * NEAR_NUMERATOR:
        return False
    common = len(one & other)
    return common * NEAR_DENOMINATOR >= (small + large - common) * NEAR_NUMERATOR


def _prefix_length(size: int) -> int:
    """How many of a set's shingles to look up: near sets differ in too few to miss each other in all of them."""
    return size - -(-size * NEAR_NUMERATOR // NEAR_DENOMINATOR) + 1


def _shingle_sets(texts: pl.Series) -> list[frozenset[int]]:
    """Give each text its set of neighbouring word pairs, as numbers in order of first appearance.

    A single word is its own shingle. A text of links, names and punctuation alone is one shingle, itself.
    """
    numbers: dict[tuple[str, ...], int] = {}
    folded = texts.str.to_lowercase()
    words = folded.str.replace_all(PASSED_ON, " ").str.extract_all(TOKEN)
    sets: list[frozenset[int]] = []
    for whole, tokens in zip(folded.to_list(), words.to_list(), strict=True):
        pairs = pairwise(tokens) if len(tokens) > 1 else [tuple(tokens) or ("", whole, "")]
        sets.append(frozenset([numbers.setdefault(pair, len(numbers)) for pair in pairs]))
    return sets
