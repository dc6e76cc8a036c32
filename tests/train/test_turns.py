"""Turns: what rests is left alone by everything, and costs no backward pass."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from alloytune.machine import Machine
from alloytune.models.load import load_tokenizer
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.types.optimizer import read_optimizer
from alloytune.selected import Selected
from alloytune.train.clip import make_clip
from alloytune.train.flops import count_flops
from alloytune.train.moving import Group, Moving, make_optimizer
from alloytune.train.optimizers import Optimizer, OptimizerSettings
from alloytune.train.turns import Series, Settling, Turn, Turns, steady
from tiny import TASK

FIRST, SECOND = Selected(frozenset({"0.weight"})), Selected(frozenset({"1.weight"}))
BOTH = FIRST | SECOND


def small() -> tuple[nn.Module, Optimizer]:
    """Two linear layers under AdamW, with decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    return model, make_optimizer(Moving((Group(tuple(sorted(BOTH.names)), 0.1, 0.5),)), named_weights(model))


def update(model: nn.Module, optimizer: Optimizer, turns: Turns, number: int) -> None:
    held = turns.at(number, 0.0)
    torch.manual_seed(number)
    model(torch.randn(4, 3)).square().sum().backward()
    held.clear_gradients()
    with held.during_update(optimizer):
        optimizer.step()
    optimizer.zero_grad()


def counts(model: nn.Module, optimizer: Optimizer) -> dict[str, int | None]:
    (part,) = optimizer.parts
    return {name: int(part.state[w]["step"]) if w in part.state else None for name, w in named_weights(model).items()}


def alternating(every: int) -> Series:
    return Series(lambda number: Turn(number, (FIRST, SECOND)[number % 2]), every, last=None)


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        (steady(BOTH), [0, 0, 0, 0, 0, 0, 0]),
        (alternating(2), [0, 0, 1, 1, 2, 2, 3]),
        (Series(lambda number: Turn(number, BOTH), 3, last=1), [0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_turns_by_number(course: Series, expected: list[int]) -> None:
    assert [course.number(update, 0.0) for update in range(1, 8)] == expected


@pytest.mark.parametrize(("forgets", "last"), [(False, {"0.weight": 4, "1.weight": 2}), (True, {"0.weight": 2})])
def test_what_rests_is_not_stepped_decayed_or_counted(forgets: bool, last: dict[str, int]) -> None:
    model, optimizer = small()
    seen: list[tuple[int, int, dict[str, int]]] = []
    turns = Turns(
        alternating(2),
        BOTH.names,
        model,
        optimizer,
        forgets=forgets,
        on_turn=lambda turn, update, counts: seen.append((turn.number, update, dict(counts))),
    )
    for number in range(1, 7):
        before = copy_weights(model, BOTH.names)
        update(model, optimizer, turns, number)
        moved = {
            name for name, weight in copy_weights(model, BOTH.names).items() if not torch.equal(weight, before[name])
        }
        assert moved == {f"{(number - 1) // 2 % 2}.weight"}
    assert {name: count for name, count in counts(model, optimizer).items() if count} == last
    assert seen == [(0, 1, {"0.weight": 9}), (1, 3, {"1.weight": 9}), (2, 5, {"0.weight": 9})]


def test_other_elements_begin_anew_where_memory_is_forgotten() -> None:
    """The first weight goes on as it is, of the second other elements move."""
    model, optimizer = small()
    masks = [torch.eye(3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool).triu(1)]
    parts = [FIRST | Selected.parts({"1.weight": mask}) for mask in masks]
    turns = Turns(Series(lambda n: Turn(n, parts[n]), 2, 1), BOTH.names, model, optimizer, forgets=True)
    start = copy_weights(model, BOTH.names)["1.weight"]
    for number in (1, 2):
        update(model, optimizer, turns, number)
    middle = copy_weights(model, BOTH.names)["1.weight"]
    assert torch.equal(middle != start, masks[0])
    update(model, optimizer, turns, 3)
    assert counts(model, optimizer) == {"0.weight": 3, "1.weight": 1}
    end = copy_weights(model, BOTH.names)["1.weight"]
    assert torch.equal(end != middle, masks[1])
    decayed = middle * (1 - 0.1 * 0.5)
    assert torch.allclose((end - decayed).abs()[masks[1]], torch.tensor(0.1), atol=1e-4)  # Adam's first update


@pytest.mark.parametrize("saved_after", [1, 2, 3, 4])
@pytest.mark.parametrize("forgets", [False, True])
def test_goes_on_in_the_middle_of_a_turn(saved_after: int, forgets: bool) -> None:
    """A turn that was decided is not decided anew; the next ones are."""
    decided: list[int] = []

    def decide(number: int) -> Turn:
        decided.append(number)
        return Turn(number, (FIRST, SECOND | Selected.parts({"0.weight": torch.eye(3, dtype=torch.bool)}))[number % 2])

    def begin() -> tuple[nn.Module, Optimizer, Turns]:
        model, optimizer = small()
        course = Series(decide, 2, last=None)
        return model, optimizer, Turns(course, BOTH.names, model, optimizer, forgets=forgets)

    model, optimizer, turns = begin()
    for number in range(1, saved_after + 1):
        update(model, optimizer, turns, number)
    tensors, state = turns.state()
    resumed, its_optimizer, its_turns = begin()
    resumed.load_state_dict(model.state_dict())
    its_optimizer.parts[0].load_state_dict(deepcopy(optimizer.parts[0].state_dict()))
    decided.clear()
    its_turns.put(tensors, state)
    for number in range(saved_after + 1, 7):
        update(resumed, its_optimizer, its_turns, number)
    assert decided == [number for number in (1, 2) if 2 * number >= saved_after]
    for number in range(saved_after + 1, 7):
        update(model, optimizer, turns, number)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), resumed.parameters(), strict=True))


def test_the_longest_run_of_settled_layers_freezes() -> None:
    """The third layer has settled, too, but the second has not; the top one never freezes."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(4)))
    weights = named_weights(model)
    layers = [frozenset({name}) for name in weights]
    settling = Settling(Selected(frozenset(weights)), layers, model, least=0.01, check=0.1)

    def frozen_after(number: int, *changes: float) -> set[str]:
        with torch.no_grad():
            for weight, change in zip(weights.values(), changes, strict=True):
                weight.mul_(1 + change)
        turn = settling.turn(number)
        standing = [change for name, change in zip(weights, changes, strict=True) if name in settling.memory]
        assert turn.notes["changes"][len(turn.notes["changes"]) - len(standing) :] == pytest.approx(standing, rel=1e-3)
        return set(weights) - turn.selected.names

    assert not set(weights) - settling.turn(0).selected.names
    assert frozen_after(1, 0.02, 0.001, 0.001, 0.001) == set()
    assert frozen_after(2, 0.005, 0.02, 0.001, 0.001) == {"0.weight"}
    assert frozen_after(3, 0.0, 0.009, 0.009, 0.001) == {"0.weight", "1.weight", "2.weight"}
    assert frozen_after(4, 0.0, 0.0, 0.0, 0.5) == {"0.weight", "1.weight", "2.weight"}


def test_checks_come_at_shares_of_the_stage() -> None:
    settling = Settling(BOTH, [], nn.Linear(1, 1), least=1.0, check=0.1)
    assert [settling.number(update, (update - 1) / 30) for update in (1, 3, 4, 6, 7, 9, 10, 28, 30)] == [
        *(0, 0, 1, 1, 2, 2, 3, 9, 9)
    ]


def test_backward_stops_at_the_lowest_weight_that_moves(state: ModelState, bert: Path) -> None:
    tokenizer = load_tokenizer(str(bert))
    examples = TASK.encode(tiny.make_table(40), tokenizer, 32).examples
    batch, machine = [TASK.collate(examples[:8], tokenizer)], Machine(torch.device("cpu"), torch.float32)
    names = frozenset(named_weights(state.model))
    roles = state.roles()
    lower, upper = roles.stacks["layers"]
    parts = [Selected(part | state.head) for part in (upper, lower, upper | lower)]
    optimizer = make_optimizer(Moving((Group(tuple(sorted(names)), 1e-3, 0.0),)), named_weights(state.model))
    turns = Turns(Series(lambda number: Turn(number, parts[number]), last=2), names, state.model, optimizer)
    costs = []
    for number in (1, 2, 3):
        turns.at(number, 0.0)
        costs.append(count_flops(state.model, batch, TASK.summed_loss, machine))
        assert {name for name, w in named_weights(state.model).items() if w.requires_grad} == parts[number - 1].names
    forward = costs[0] / 2  # of two layers; the upper one's backward pass is as much again
    assert costs[1] == pytest.approx(2.5 * forward, rel=0.1)
    assert costs[2] == pytest.approx(3 * forward, rel=0.1)


def test_a_role_that_rests_does_not_count_for_clipping() -> None:
    weights = {name: nn.Parameter(torch.ones(2)) for name in ("layer", "head")}
    moving = Moving((Group(("layer",), 0.1, 0.0, "layers"), Group(("head",), 0.1, 0.0, "head")))
    optimizer = make_optimizer(moving, weights)
    weights["head"].grad = torch.tensor([3.0, 4.0])
    assert float(make_clip(1.0, "group")(optimizer.param_groups)) == 5.0


def test_schedule_free_weights_that_have_not_joined_stay() -> None:
    model, _ = small()
    moving = Moving((Group(tuple(sorted(BOTH.names)), 0.1, 0.5),), OptimizerSettings(*read_optimizer("schedule_free")))
    optimizer = make_optimizer(moving, named_weights(model))
    start = copy_weights(model, BOTH.names)
    turns = Turns(Series(lambda n: Turn(n, (SECOND, BOTH)[n]), 3, 1), BOTH.names, model, optimizer)
    for number in range(1, 5):
        optimizer.train()
        update(model, optimizer, turns, number)
        optimizer.eval()
        now = copy_weights(model, BOTH.names)
        assert torch.equal(now["0.weight"], start["0.weight"]) is (number < 4)
