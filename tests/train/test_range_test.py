"""The range test finds where training breaks, and says nothing where nothing helped."""

import math
from itertools import islice

import numpy as np
import pytest
import torch

from alloytune.machine import find_machine
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, free_only, named_weights
from alloytune.tasks.task import Batch
from alloytune.train.clip import make_clip
from alloytune.train.moving import Group, Moving, Still, make_optimizer
from alloytune.train.range_test import BELOW, EQUALS, FEWEST, MOST, RangeTest, num_sweep_updates, range_test
from tiny import TASK


def curve(breaks_at: float, noise: float = 0.0, num_updates: int = 25) -> RangeTest:
    """A loss that falls in proportion to the rate, and rises steeply beyond a multiplier."""
    multipliers = np.geomspace(0.1, 30, num_updates)
    changes = np.where(multipliers <= breaks_at, -0.1 * multipliers / breaks_at, 1.0)
    changes += noise * np.random.default_rng(0).standard_normal(num_updates)
    return RangeTest(tuple(multipliers), tuple(changes))


@pytest.mark.parametrize("breaks_at", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_choice_of_a_long_sweep_lies_a_fixed_factor_below_the_break(breaks_at: float, noise: float) -> None:
    chosen = curve(breaks_at, noise, num_updates=2000).chosen
    assert chosen is not None
    assert BELOW * breaks_at / 3 < chosen <= BELOW * breaks_at * 1.05


@pytest.mark.parametrize("breaks_at", [0.5, 30.0])
def test_the_shorter_a_sweep_the_nearer_the_choice_is_to_the_starting_rate(breaks_at: float) -> None:
    lengths = (8, EQUALS, 100, 2000)
    away = [abs(math.log(curve(breaks_at, num_updates=length).chosen or math.nan)) for length in lengths]
    assert away == sorted(away)
    even = curve(breaks_at, num_updates=EQUALS)
    halfway = [math.sqrt(BELOW * multiplier) for multiplier in even.multipliers]
    assert any(even.chosen == pytest.approx(place) for place in halfway)


def test_nothing_is_chosen_where_nothing_helped() -> None:
    assert RangeTest((0.1, 1.0, 10.0), (0.01, 0.02, 3.0)).chosen is None
    assert RangeTest((0.1,), (-1.0,)).chosen is None


def test_a_loss_that_went_up_and_down_before_it_was_lowest_says_nothing() -> None:
    """The sweep of full fine-tuning of multilingual-e5-small on Chinese reviews: 2.3e-4, where 5e-5 is best."""
    changes = (3, -4, 3, 10, -10, 5, 2, -5, -29, -53, -2, 29, -116, -17, -71, 64, -78)
    multipliers = tuple(np.geomspace(0.1, 30, len(changes)).tolist())
    assert RangeTest(multipliers, tuple(1e-3 * change for change in changes)).chosen is None
    steady = (0, -4, -19, -30, -97, -214, 14, 144)  # all-MiniLM-L6-v2 on `trec`
    assert RangeTest(multipliers[:15:2], tuple(1e-3 * change for change in steady)).chosen is not None


@pytest.mark.parametrize(("stage", "sweep"), [(0, 0), (100, 0), (107, FEWEST), (400, 30), (10**6, MOST)])
def test_a_sweep_costs_a_tenth_of_the_stage_at_most(stage: int, sweep: int) -> None:
    assert num_sweep_updates(stage) == sweep
    assert sweep * 4 / 3 <= 0.1 * stage + 1e-9


def test_two_sweeps_share_what_a_search_may_cost() -> None:
    assert [num_sweep_updates(updates, 2) for updates in (213, 214, 10**6)] == [0, FEWEST, MOST]


def sweep(state: ModelState, start: float, num_updates: int = 12) -> RangeTest:
    moving = Moving((Group(tuple(sorted(named_weights(state.model))), start, 0.0),))
    weights = named_weights(state.model)
    free_only(state.model, moving.names)
    torch.manual_seed(3)
    batches = [
        Batch({"input_ids": torch.randint(5, 30, (8, 6))}, torch.randint(0, 2, (8,)), ("r",) * 8, 48, 8)
        for _ in range(num_updates)
    ]
    return range_test(
        state.model,
        make_optimizer(moving, weights),
        [[batch] for batch in islice(batches, num_updates)],
        TASK.summed_loss,
        find_machine("float32"),
        still=lambda update: Still({}, weights),
        clip=make_clip(1.0),
        seed=5,
    )


def test_the_same_rates_are_found_again(state: ModelState) -> None:
    before = copy_weights(state.model, named_weights(state.model))
    first = sweep(state, 1e-3)
    for name, weight in named_weights(state.model).items():
        weight.data.copy_(before[name])
    assert sweep(state, 1e-3) == first
    assert len(first.changes) == 11
    assert first.multipliers[0] == pytest.approx(0.1)
    assert first.multipliers[-1] == pytest.approx(30)


def test_a_sweep_that_ends_in_infinity_stops_there(state: ModelState) -> None:
    found = sweep(state, 1e30)
    assert len(found.changes) < 11
    assert all(np.isfinite(found.changes))


def test_a_low_loss_after_the_break_says_nothing() -> None:
    """As on 800 tweets, where the starting rate times 6 ended in one label for all."""
    multipliers = (0.1, 0.226, 0.51, 1.15, 2.6, 5.87, 13.3, 30.0)
    rising = (-0.008, -0.015, -0.068, -0.062, -0.068, 0.074, 0.162)
    assert RangeTest(multipliers, (*rising, -0.105)).chosen is None
    assert RangeTest(multipliers, (*rising, 0.4)).chosen is not None
    assert RangeTest(multipliers, (0.001, -0.015, -0.06, -0.1, -0.2, -0.1, 0.1, 0.4)).chosen is not None
