"""Courses of the rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloytune.train.schedule import make_schedule


@given(
    st.sampled_from(["constant", "linear", "cosine", "slanted", "stable-then-decay"]),
    st.floats(0, 0.9),
    st.floats(-0.1, 1.1),
)
def test_stays_between_zero_and_one(kind: str, warmup: float, progress: float) -> None:
    assert 0.0 <= make_schedule(kind, warmup)(progress) <= 1.0


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("linear", 0.05, 0.5),
        ("linear", 0.1, 1.0),
        ("linear", 0.55, 0.5),
        ("linear", 1.0, 0.0),
        ("cosine", 0.55, 0.5),
        ("cosine", 1.0, 0.0),
        ("constant", 0.05, 0.5),
        ("constant", 1.0, 1.0),
        ("slanted", 0.0, 1 / 32),
        ("slanted", 0.05, (1 + 0.5 * 31) / 32),  # Howard and Ruder 2018, with cut_frac 0.1 and ratio 32
        ("slanted", 0.1, 1.0),
        ("slanted", 0.55, (1 + 0.5 * 31) / 32),
        ("slanted", 1.0, 1 / 32),
        ("stable-then-decay", 0.05, 0.5),
        ("stable-then-decay", 0.8, 1.0),
        ("stable-then-decay", 0.865, 0.5),  # a quarter of the last fifth: 1 - sqrt(1/4)
        ("stable-then-decay", 1.0, 0.0),
    ],
)
def test_hand_checked_points(kind: str, progress: float, expected: float) -> None:
    assert make_schedule(kind, 0.1)(progress) == pytest.approx(expected)


def test_no_warmup_starts_at_the_full_rate() -> None:
    assert make_schedule("linear", 0.0)(0.0) == 1.0
