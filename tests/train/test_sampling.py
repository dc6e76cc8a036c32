"""Few rows that stand for many."""

import pytest

from alloytune.tasks.task import Example
from alloytune.train.sampling import alike


@pytest.mark.parametrize(
    ("lengths", "num_tokens", "expected"),
    [
        ([9, 1, 5, 5, 2, 90, 4], 10, [4, 5]),
        ([9, 1, 5, 5, 2, 90, 4], 1, [2, 4, 5, 5]),  # no fewer than four
        ([3, 2, 1], 1000, [1, 2, 3]),
        ([7], 1, [7]),
    ],
)
def test_rows_of_about_the_same_length(lengths: list[int], num_tokens: int, expected: list[int]) -> None:
    rows = [Example(str(number), {"input_ids": [0] * length}, 0) for number, length in enumerate(lengths)]
    least = 4 if num_tokens == 1 else 1
    assert [example.num_tokens for example in alike(rows, num_tokens, least)] == expected
