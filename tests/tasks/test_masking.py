"""Hiding tokens: how many, which, and behind what."""

import numpy as np

from alloytune.tasks.masking import IGNORED, hide

MASK = 4


def test_a_share_is_hidden_in_the_proportions_of_bert() -> None:
    random, ids = np.random.default_rng(0), [2, *range(10, 50), 3]
    chosen, masked, kept = 0, 0, 0
    for _ in range(500):
        read, targets = hide(ids, range(1, 41), MASK, 60, 0.15, random)
        places = [place for place, target in enumerate(targets) if target != IGNORED]
        assert places
        assert all(targets[place] == ids[place] for place in places)
        assert all(read[place] == ids[place] for place in range(len(ids)) if place not in places)
        assert places[0] > 0
        assert places[-1] < len(ids) - 1
        chosen += len(places)
        masked += sum(read[place] == MASK for place in places)
        kept += sum(read[place] == ids[place] for place in places)
    assert abs(chosen / (500 * 40) - 0.15) < 0.005
    assert abs(masked / chosen - 0.8) < 0.03
    assert abs(kept / chosen - 0.1) < 0.03


def test_the_same_seed_hides_the_same() -> None:
    draws = [hide(range(10, 40), range(30), MASK, 60, 0.15, np.random.default_rng([1, n])) for n in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_one_word_is_hidden_at_least_and_none_where_none_may_be() -> None:
    random = np.random.default_rng(0)
    assert sum(target != IGNORED for target in hide([2, 10, 3], [1], MASK, 60, 0.15, random)[1]) == 1
    assert hide([2, 3], [], MASK, 60, 0.15, random) == ([2, 3], [IGNORED, IGNORED])
