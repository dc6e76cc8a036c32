"""`rate: auto`: the measured rates at the measured size, lower ones for larger models, the usual ones at theirs."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloytune.models.methods import AdaloraSettings, BottleneckSettings, LoraSettings, Method, VeraSettings
from alloytune.rates import MEASURED_BODY, STARTS, Family, Kind, adapter_rate, auto_rate

kinds = st.sampled_from(list(STARTS))


@pytest.mark.parametrize("kind", STARTS)
def test_the_measured_model_gets_the_measured_rate(kind: Kind) -> None:
    assert auto_rate(kind, MEASURED_BODY) == STARTS[kind].rate
    assert auto_rate(kind, 1000) == STARTS[kind].rate


@given(kinds, st.sampled_from(get_args(Family)), st.integers(1, 10**11), st.integers(1, 10**11))
def test_a_larger_model_never_gets_a_higher_rate(kind: Kind, family: Family, one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert auto_rate(kind, small, family) >= auto_rate(kind, large, family) >= STARTS[kind].least


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        (LoraSettings(8), 3e-3),
        (LoraSettings(2), 3e-3),
        (LoraSettings(32), 1.5e-3),
        (LoraSettings(8, alpha=64), 1.5e-3),
        (LoraSettings(64, rslora=True), 3e-3 / math.sqrt(64)),
        (VeraSettings(8), 3e-2),
        (AdaloraSettings(8, 12), 1e-2),
        (BottleneckSettings(16, "relu", "sequential", 0.0), 3e-3),
    ],
    ids=str,
)
def test_an_adapter_that_reaches_further_begins_more_slowly(settings: Method, rate: float) -> None:
    assert adapter_rate(settings.kind, MEASURED_BODY, settings.reach) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("kind", "family", "num_body", "low", "high"),
    [
        ("full", "encoder", 21_293_568, 5e-5, 1e-4),  # multilingual-e5-small, measured
        ("adapter", "encoder", 21_293_568, 8e-4, 1.6e-3),
        ("full", "encoder", 85_000_000, 2e-5, 5e-5),  # BERT-base
        ("full", "encoder", 302_000_000, 1e-5, 2e-5),  # BERT-large
        ("adapter", "encoder", 85_000_000, 2e-4, 5e-4),
        ("vectors", "encoder", 85_000_000, 5e-4, 1e-3),
        ("few", "encoder", 85_000_000, 5e-3, 1e-2),
        ("full", "decoder", 300_000_000, 2e-5, 5e-5),
        ("full", "decoder", 1_000_000_000, 2e-5, 5e-5),
        ("full", "decoder", 3_000_000_000, 2e-5, 5e-5),
        ("adapter", "decoder", 1_000_000_000, 2e-4, 2e-4),
        ("full", "decoder", 6_500_000_000, 1e-5, 2e-5),
        ("adapter", "decoder", 6_500_000_000, 1e-4, 2e-4),
        ("full", "t5", 200_000_000, 1e-4, 3e-4),
    ],
)
def test_usual_rates_at_usual_sizes(kind: Kind, family: Family, num_body: int, low: float, high: float) -> None:
    assert low <= auto_rate(kind, num_body, family) <= high
