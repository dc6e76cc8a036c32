"""Near-duplicates are found exactly, and repair leaves sound text alone."""

from itertools import combinations, pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alloytune.data.near import NearIndex, find_near_across, group_near
from alloytune.data.quotas import share_out
from alloytune.data.repair import repair_column, repair_text
from alloytune.tasks.asked import rules_for
from alloytune.tasks.labels import sort_naturally

# Few words and long texts, so that many pairs lie close to the border of 0.8.
wordy = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


def near_by_hand(texts: list[str]) -> set[tuple[int, int]]:
    """Give the pairs whose sets of neighbouring words have four fifths in common."""
    sets = []
    for text in texts:
        words = text.split()
        sets.append(set(pairwise(words)) if len(words) > 1 else {tuple(words) or (text,)})
    return {
        (one, other)
        for one, other in combinations(range(len(texts)), 2)
        if 5 * len(sets[one] & sets[other]) >= 4 * len(sets[one] | sets[other])
    }


@settings(deadline=None)
@given(st.lists(wordy, max_size=25))
def test_groups_are_chains_of_near_rows(texts: list[str]) -> None:
    groups = list(range(len(texts)))
    for one, other in sorted(near_by_hand(texts)):
        lower, upper = sorted((groups[one], groups[other]))
        groups = [lower if group == upper else group for group in groups]
    assert group_near([pl.Series(texts, dtype=pl.String)]) == groups


@settings(deadline=None)
@given(st.lists(st.tuples(wordy, st.integers(0, 2)), max_size=25))
def test_rows_are_held_against_those_kept_of_lower_ranks(rows: list[tuple[str, int]]) -> None:
    texts, ranks = [text for text, _ in rows], [rank for _, rank in rows]
    pairs = near_by_hand(texts)
    twins: dict[int, int] = {}
    for rank in (1, 2):
        kept = [n for n in range(len(rows)) if ranks[n] < rank and n not in twins]
        for number in (n for n in range(len(rows)) if ranks[n] == rank):
            near = [n for n in kept if (min(n, number), max(n, number)) in pairs]
            twins |= {number: near[0]} if near else {}
    assert find_near_across([pl.Series(texts, dtype=pl.String)], ranks) == twins


def test_a_thousand_rows_of_one_form_are_hardly_compared() -> None:
    form = "your order {} of the spring sale has been sent today and will reach you soon"
    apart = NearIndex([pl.Series([form.format(n) for n in range(1000)])])  # 13 of 17 pairs of words in common
    assert len(list(apart.near_pairs(np.arange(1000), np.arange(1000)))) == 1  # round, in which there is no pair
    near = pl.Series([form.format(n) + " so please wait for it at home" for n in range(1000)])  # 20 of 24
    rounds = NearIndex([near]).near_pairs(np.arange(1000), labels := np.arange(1000))
    _, ones, others = next(rounds)
    assert len(set(ones) | set(others)) == 1000
    labels[:] = 0
    assert len(list(rounds)) == 1
    assert set(group_near([near])) == {0}


def near(one: str, other: str) -> bool:
    return bool(NearIndex([pl.Series([one, other])]).are_near(np.array([0]), np.array([1])).item())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The train is late again", "RT @rail: the train is LATE again!! https://t.co/abc"),
        ("@you look at this", "@them look at this"),
        ("这部电影非常好看", "这部电影，非常好看！http://t.cn/x"),
        ("one two three four five six seven eight nine ten", "one two three four five six seven eight nine ten eleven"),
    ],
)
def test_passed_on_texts_are_near(one: str, other: str) -> None:
    assert near(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I love it", "I hate it"),
        ("flight 17 is late", "flight 18 is late"),
        ("so good 😀", "so good 😡"),
        ("@you", "@them"),
        (":)", ":("),
        ("", "!"),
        ("我很喜欢这本书", "我不喜欢这本书"),
    ],
)
def test_texts_that_say_something_else_are_not(one: str, other: str) -> None:
    assert not near(one, other)


def test_pairs_are_near_in_both_texts() -> None:
    columns = [pl.Series(["a long premise", "a long premise"]), pl.Series(["it is so", "it is not"])]
    assert not NearIndex(columns).are_near(np.array([0]), np.array([1])).any()
    assert group_near(columns) == [0, 1]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("&amp;lt<Ãâ€™ \r\x1c\u2028é"))
@example("\x85")
def test_repairing_twice_is_repairing_once(text: str) -> None:
    once = repair_text(text)
    assert repair_text(once) == once
    assert repair_column(pl.Series([text])).to_list() == [once]


@pytest.mark.parametrize(
    ("damaged", "mended"),
    [
        ("The Mona Lisa doesnâ€™t have eyebrows.", "The Mona Lisa doesn’t have eyebrows."),
        ("fish &amp; chips", "fish & chips"),
        ("schÃ¶n\r\n", "schön"),
        ("很好，“真的”！", "很好，“真的”！"),
        (None, None),
    ],
)
def test_damage_is_mended_and_typography_kept(damaged: str | None, mended: str | None) -> None:
    assert repair_column(pl.Series([damaged], dtype=pl.String)).to_list() == [mended]


def test_markup_stays_where_it_may_be_asked_for() -> None:
    assert repair_column(pl.Series(["&lt;b&gt; schÃ¶n"]), unescapes=False).to_list() == ["&lt;b&gt; schön"]
    assert not rules_for(["instruction", "output"]).unescapes


def test_labels_sort_as_people_do() -> None:
    assert sort_naturally(["10", "2", "b", "B", "a10", "a9", ""]) == ["", "2", "10", "a9", "a10", "B", "b"]


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=2), st.integers(1, 50), min_size=1), st.floats(0, 1), st.integers(0, 1))
def test_quotas_add_up(sizes: dict[str, int], share: float, least: int) -> None:
    total = round(share * sum(sizes.values()))
    quotas = share_out(sizes, total, least, sizes)
    assert sum(quotas.values()) == max(total, least * len(sizes))
    assert all(least <= quotas[name] <= sizes[name] for name in sizes)
