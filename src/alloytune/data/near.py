"""Find near-duplicates: retweets, copies with a word changed, the same text with another link.

Two texts are near when the sets of their neighbouring word pairs have a Jaccard similarity of at least 0.8.
The search is exact: a prefix filter (Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", 2007; with the
shorter prefix of the smaller set of Xiao et al., "Efficient similarity joins for near duplicate detection", 2008)
cannot miss a pair. MinHash with 16 bands of 8 found 27,600 of the 32,018 near pairs in a table of 38,158 tweets;
32 bands of 4 found them all, but with nothing to promise it for the next table.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import polars as pl
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

# Whole numbers, so that exactly 4/5 counts as near without rounding.
NEAR_NUMERATOR, NEAR_DENOMINATOR = 4, 5

# Links and names change when a text is passed on. Only ASCII ends a link: Chinese text follows one without a blank.
PASSED_ON = r"https?://[!-~]+|www\.[!-~]+|\brt\s+@\w+:?|\B@\w+"

# Scripts written without blanks count by character; digits and symbols (emoji) carry meaning and stay.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
TOKEN = rf"[{UNSPACED}]|[[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]+|\p{{S}}"


# Bounds of what is held at once; the sets themselves take four bytes for each word pair.
ROWS_AT_ONCE = 50_000
PAIRS_AT_ONCE = 2**15

_NO_WORD = 2**32 - 1

Rows = np.ndarray  # numbers of rows, or a number for each row


def group_near(columns: Sequence[pl.Series]) -> list[int]:
    """Give each row the number of its group's first row; rows are in one group when a chain of near ones joins them."""
    index = NearIndex(columns)
    labels = index.same.copy()
    found: list[tuple[Rows, Rows]] = []
    for distance, ones, others in index.near_pairs(np.unique(labels), labels):
        found.append((ones, others))
        if _is_power_of_two(distance):
            labels[:] = _join(labels, found)
            found.clear()
    return list(_join(labels, found).tolist())


def find_near_across(columns: Sequence[pl.Series], ranks: Sequence[int]) -> dict[int, int]:
    """Give the rows that are near a row of a lower rank that is not itself given; each with the lowest such row."""
    index = NearIndex(columns)
    rank_of, nothing = np.array(ranks, dtype=np.int64), len(ranks)
    twins = np.full(len(ranks), nothing)
    for rank in np.unique(rank_of)[1:]:
        old, new = (rank_of < rank) & (twins == nothing), rank_of == rank
        # Rows with the same shingles share their fate, so that one of each kind is looked up.
        _, firsts, place = np.unique(index.same * 2 + new, return_index=True, return_inverse=True)
        _, kept_firsts = np.unique(np.where(old, index.same, -1), return_index=True)
        rows = np.union1d(firsts[new[firsts]], kept_firsts[old[kept_firsts]])
        lowest = np.full(len(ranks), nothing)
        for _, ones, others in index.near_pairs(rows, new.astype(np.int64)):
            swapped = new[ones]
            np.minimum.at(lowest, np.where(swapped, ones, others), np.where(swapped, others, ones))
        twins[new] = lowest[firsts[place]][new]
    return {int(row): int(twins[row]) for row in np.flatnonzero(twins < nothing)}


class NearIndex:
    """Rows that are compared by the shingles of their texts; a row is its number in the columns given.

    With several columns, rows are near when they are near in each; an empty cell is an empty text. `same` gives each
    row the first one with its shingles.
    """

    def __init__(self, columns: Sequence[pl.Series]) -> None:
        self._parts = [_shingle_sets(column) for column in columns]
        self._sizes = np.diff(self._parts[0].indptr)
        self.same = _first_with_same(self._parts)

    def are_near(self, ones: Rows, others: Rows) -> np.ndarray:
        """Tell of pairs of rows, one of each list, whether they are near in every column."""
        near = np.ones(len(ones), dtype=bool)
        for part in self._parts:
            sizes = np.diff(part.indptr)
            for start in range(0, len(ones), PAIRS_AT_ONCE):
                pairs = slice(start, start + PAIRS_AT_ONCE)
                common = part[ones[pairs]].multiply(part[others[pairs]]).sum(axis=1, dtype=np.int64)
                either = sizes[ones[pairs]] + sizes[others[pairs]] - common
                near[pairs] &= common * NEAR_DENOMINATOR >= either * NEAR_NUMERATOR
        return near

    def near_pairs(self, rows: Rows, labels: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """Give, in rounds numbered from 1, the near pairs among `rows` that have different labels, each at least once.

        `labels`, one for each row of the columns, may be changed between rounds; pairs that have come to the same one
        are then left out.
        Rows that share a shingle of their prefixes stand in one bucket, by size. Round d compares each with the one d
        places on, so that what is held at once grows with the rows and never with the pairs.
        """
        shingles, members, is_left = self._entries(rows)
        ends = np.searchsorted(shingles, shingles, side="right")
        starts = np.flatnonzero(np.diff(shingles, prepend=-1))
        left, distance = np.flatnonzero(is_left), 1
        while len(left):
            if _is_power_of_two(distance):
                left = left[_is_mixed(labels[members], starts)[np.searchsorted(starts, left, side="right") - 1]]
            left = left[left + distance < ends[left]]
            ones, others = members[left], members[left + distance]
            # A bucket goes by size: all that follow one that is too large are.
            fits = self._sizes[others] * NEAR_NUMERATOR <= self._sizes[ones] * NEAR_DENOMINATOR
            left, ones, others = left[fits], ones[fits], others[fits]
            differ = labels[ones] != labels[others]
            ones, others = ones[differ], others[differ]
            near = self.are_near(ones, others)
            yield distance, ones[near], others[near]
            distance += 1

    def _entries(self, rows: Rows) -> tuple[np.ndarray, Rows, np.ndarray]:
        """Give shingle and row for every shingle in a row's prefix, by shingle and then by size.

        The third tells whether near rows that are as large or larger must share one such shingle: the smaller of two
        near rows has more in common with the larger than a fifth less than itself.
        """
        sizes, offsets = self._sizes[rows], self._parts[0].indptr[rows]
        lengths = sizes - -(-sizes * NEAR_NUMERATOR // NEAR_DENOMINATOR) + 1
        least_common = -(-2 * sizes * NEAR_NUMERATOR // (NEAR_NUMERATOR + NEAR_DENOMINATOR))
        members = np.repeat(rows, lengths)
        places = np.arange(len(members)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        shingles = self._parts[0].indices[np.repeat(offsets, lengths) + places]
        is_left = places <= np.repeat(sizes - least_common, lengths)
        order = np.lexsort((self._sizes[members], shingles))
        return shingles[order], members[order], is_left[order]


def _join(labels: Rows, found: Sequence[tuple[Rows, Rows]]) -> Rows:
    """Give each row the first row of its group, once the pairs found have joined groups; labels are first rows too."""
    ones, others = (labels[np.concatenate([pair[n] for pair in found] or [labels[:0]])] for n in (0, 1))
    graph = coo_array((np.ones(len(ones), dtype=bool), (ones, others)), shape=(len(labels), len(labels)))
    component = connected_components(graph, directed=False)[1]
    _, lowest = np.unique(component, return_index=True)
    joined: Rows = lowest[component][labels]
    return joined


def _is_mixed(labels: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Tell of every bucket, by where it starts, whether it holds more than one label."""
    mixed: np.ndarray = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
    return mixed


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _shingle_sets(texts: pl.Series) -> csr_array:
    """Give each text its set of neighbouring word pairs: a row of ones, [texts, pairs], the rarest pairs first.

    Rare shingles stand first because a near-duplicate must share one of the first few, and few others do then.
    A single word is its own shingle. A text of links, names and punctuation alone is one shingle, itself.
    """
    words, lengths = _number_words(texts)
    last = np.cumsum(lengths) - 1
    seconds = np.append(words[1:], 0)
    seconds[last] = _NO_WORD
    is_shingle = np.ones(len(words), dtype=bool)
    is_shingle[last[lengths > 1]] = False
    pairs = words[is_shingle] << 32 | seconds[is_shingle]
    _, numbers, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    ranks = np.argsort(np.argsort(counts, kind="stable"))
    rows = np.repeat(np.arange(len(texts)), np.maximum(lengths - 1, 1))
    members = np.sort(rows << 32 | ranks[numbers])  # numpy's own unique, by hash, took minutes for 22 million
    members = members[np.diff(members, prepend=-1) != 0]
    starts = np.searchsorted(members, np.arange(len(texts) + 1) << 32)
    indices = (members & _NO_WORD).astype(np.int32)
    return csr_array((np.ones(len(indices), dtype=np.int8), indices, starts), shape=(len(texts), len(counts)))


def _number_words(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Give the words of all texts one after another, as numbers, and how many each text has; at least one."""
    known: dict[str, int] = {}
    words, lengths = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for start in range(0, len(texts), ROWS_AT_ONCE):
        folded = texts[start : start + ROWS_AT_ONCE].fill_null("").str.to_lowercase().alias("whole")
        found = folded.str.replace_all(PASSED_ON, " ").str.extract_all(TOKEN).alias("words")
        whole = pl.concat_list(pl.lit("\0") + pl.col("whole"))  # no word begins so
        is_none = pl.col("words").list.len() == 0
        table = pl.select(folded, found).select(pl.when(is_none).then(whole).otherwise("words").alias("words"))
        flat = table["words"].explode()
        new = flat.unique(maintain_order=True)
        numbers = [known.setdefault(word, len(known)) for word in new]
        words.append(flat.replace_strict(new, numbers, return_dtype=pl.Int64).to_numpy())
        lengths.append(table["words"].list.len().cast(pl.Int64).to_numpy())
    return np.concatenate(words), np.concatenate(lengths)


def _first_with_same(parts: Sequence[csr_array]) -> Rows:
    """Give each row the first one that has the same shingles in every column."""
    firsts: dict[bytes, int] = {}
    same = np.empty(parts[0].shape[0], dtype=np.int64)
    spans = [list(pairwise(part.indptr.tolist())) for part in parts]
    for row, places in enumerate(zip(*spans, strict=True)):
        digest = blake2b(digest_size=16)
        for part, (start, end) in zip(parts, places, strict=True):
            digest.update((end - start).to_bytes(8, "little"))
            digest.update(part.indices[start:end].tobytes())
        same[row] = firsts.setdefault(digest.digest(), row)
    return same
