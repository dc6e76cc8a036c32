"""Which examples make up which update."""

from dataclasses import replace
from itertools import islice, pairwise
from statistics import median

from hypothesis import given, settings
from hypothesis import strategies as st

from alloytune.tasks.task import Example
from alloytune.train.batches import Updates

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=150)


def series(sizes: list[int], batch: int, micro_batch: int, seed: int) -> Updates:
    examples = [Example(str(n), {"input_ids": [n] * size}, 0) for n, size in enumerate(sizes)]
    return Updates(examples, batch, micro_batch, seed, collate=lambda chosen: [int(e.row) for e in chosen])  # type: ignore[arg-type,return-value]


@given(lengths, st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_every_example_stands_once_in_an_epoch(sizes: list[int], batch: int, seed: int, epoch: int) -> None:
    updates = series(sizes, batch, batch, seed)
    chosen = updates.epoch(epoch)
    assert sorted(n for update in chosen for n in update) == list(range(len(sizes)))
    assert len(chosen) == updates.per_epoch
    assert all(len(update) <= batch for update in chosen)


@settings(max_examples=50)
@given(lengths, st.integers(1, 20), st.integers(1, 7), st.integers(0, 30))
def test_going_on_sees_the_same_updates(sizes: list[int], batch: int, micro_batch: int, done: int) -> None:
    updates = series(sizes, batch, micro_batch, seed=1)
    assert list(islice(updates.after(done), 5)) == list(islice(updates.after(0), done, done + 5))


@given(lengths, st.integers(1, 20), st.integers(1, 7))
def test_micro_batches_make_up_the_update(sizes: list[int], batch: int, micro_batch: int) -> None:
    split = next(series(sizes, batch, micro_batch, 0).after(0))
    whole = next(series(sizes, batch, batch, 0).after(0))
    assert [n for part in split for n in part] == whole[0]
    assert all(len(part) <= micro_batch for part in split)


@given(lengths, st.integers(1, 20), st.integers(1, 7), st.integers(1, 90))
def test_a_pass_is_cut_by_rows_and_by_tokens_and_never_sooner(
    sizes: list[int], batch: int, micro_batch: int, tokens: int
) -> None:
    def fits(rows: list[int]) -> bool:
        return len(rows) == 1 or (len(rows) <= micro_batch and len(rows) * max(sizes[n] for n in rows) <= tokens)

    split = next(replace(series(sizes, batch, micro_batch, 0), pass_tokens=tokens).after(0))
    whole = next(series(sizes, batch, batch, 0).after(0))
    assert [n for part in split for n in part] == whole[0]
    assert all(fits(part) for part in split)
    assert not any(fits([*part, after[0]]) for part, after in pairwise(split))


def test_neighbours_in_length_share_a_batch() -> None:
    updates = series(list(range(1, 401)), 8, 8, 0)
    spans = [max(update) - min(update) for update in updates.epoch(0)]
    assert median(spans) < 220  # of rows drawn at random it would be about 310


def test_few_rows_are_mixed_anew_in_every_epoch() -> None:
    updates = series(list(range(1, 401)), 8, 8, 0)
    before, after = ({frozenset(update) for update in updates.epoch(epoch)} for epoch in (0, 1))
    assert not before & after


def test_epochs_differ() -> None:
    updates = series([5] * 64, 8, 8, 0)
    assert [list(u) for u in updates.epoch(0)] != [list(u) for u in updates.epoch(1)]
