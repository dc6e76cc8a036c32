"""Tokenized rows in flat arrays: four bytes a token, where lists of Python's numbers take forty."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, overload

import numpy as np

from alloytune.tasks.task import Example


class TokenizedRows(Sequence[Example]):
    """The examples of a table, each made when it is asked for.

    `inputs` are the values of all rows one after another by key, as parts to be joined, every key with as many values
    in a row: `lengths` says how many, by row.
    """

    def __init__(
        self,
        rows: Sequence[str],
        inputs: Mapping[str, Sequence[np.ndarray]],
        lengths: np.ndarray,
        targets: Sequence[Any],
    ) -> None:
        self.lengths = lengths
        self.rows = rows
        self._inputs = {key: np.concatenate(parts) for key, parts in inputs.items()}
        self._ends = np.cumsum(lengths)
        self._targets = targets

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, chosen: int) -> Example: ...
    @overload
    def __getitem__(self, chosen: slice) -> list[Example]: ...
    def __getitem__(self, chosen: int | slice) -> Example | list[Example]:
        if isinstance(chosen, slice):
            return [self[number] for number in range(*chosen.indices(len(self)))]
        end = int(self._ends[chosen])  # raises IndexError as a list does
        start = end - int(self.lengths[chosen])
        inputs = {key: values[start:end].tolist() for key, values in self._inputs.items()}
        return Example(self.rows[chosen], inputs, self._targets[chosen])


def flat(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Join lists of numbers of tokens."""
    return np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=sum(map(len, lists)))


def count_tokens(examples: Sequence[Example]) -> np.ndarray:
    """Give the length of every example in tokens."""
    if isinstance(examples, TokenizedRows):
        return examples.lengths
    return np.array([example.num_tokens for example in examples], dtype=np.int64)


def row_names(examples: Sequence[Example]) -> Sequence[str]:
    """Say of every example which row it is of."""
    return examples.rows if isinstance(examples, TokenizedRows) else [example.row for example in examples]


def passes(
    numbers: np.ndarray, lengths: np.ndarray, most_rows: int, most_tokens: int, most_padding: int | None = None
) -> Iterator[np.ndarray]:
    """Cut a series of examples into passes of so many rows at most, and so many tokens once they are padded.

    `lengths` are those of all examples, by number. One example is a pass however long it is. `most_padding` is how many
    of a pass's tokens may be padding, where more would cost more than another pass.
    """
    start = longest = total = 0
    for place, length in enumerate(lengths[numbers].tolist()):
        longest, total = max(longest, length), total + length
        num_rows = place - start + 1
        is_padded = most_padding is not None and num_rows * longest - total > most_padding
        if num_rows > 1 and (num_rows > most_rows or num_rows * longest > most_tokens or is_padded):
            yield numbers[start:place]
            start, longest, total = place, length, length
    if len(numbers):
        yield numbers[start:]
