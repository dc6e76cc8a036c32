"""A stage around the loop: when it ends, what it keeps, when it saves."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import tiny
from alloytune.errors import Interrupted
from alloytune.machine import Machine
from alloytune.models.load import load_tokenizer
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, free_only, named_weights
from alloytune.tasks.task import Scores
from alloytune.train.batches import Updates
from alloytune.train.clip import make_clip
from alloytune.train.flops import flops_per_token
from alloytune.train.moving import Group, Moving, make_optimizer
from alloytune.train.schedule import make_schedule
from alloytune.train.stage import Progress, StagePlan, StageRun, run_stage
from alloytune.train.turns import Turns, steady
from alloytune.watch import Watcher
from tiny import TASK

PLAN = StagePlan(
    seed=0,
    schedule=make_schedule("constant", 0.0),
    clip=make_clip(1.0),
    max_updates=10,
    max_seconds=None,
    patience=None,
    evaluate_every=2,
    keep="best",
    metric="accuracy",
    clearly_behind=lambda best, other: best.values["accuracy"] - other.values["accuracy"] > 0.05,
)


class Seen(Watcher):
    """Remembers the weights at every evaluation."""

    def __init__(self, state: ModelState) -> None:
        self.state = state
        self.weights: dict[int, torch.Tensor] = {}

    def on_scores(self, scores: Scores, progress: Progress) -> None:
        self.weights[progress.update] = copy_weights(self.state.model, ["classifier.weight"])["classifier.weight"]


def train(
    state: ModelState,
    bert: Path,
    plan: StagePlan,
    accuracies: list[float],
    *,
    save: Callable[[Progress], None] = lambda progress: None,
    stop_requested: Callable[[], bool] = lambda: False,
    losses: Sequence[float] = (1.0,),
    averages: list[torch.Tensor] | None = None,
) -> tuple[Progress, Seen]:
    """Train the head; evaluation number n gives the nth accuracy and loss, the last ones for ever."""
    tokenizer = load_tokenizer(str(bert))
    examples = TASK.encode(tiny.make_table(40), tokenizer, 32).examples
    names = state.head
    free_only(state.model, names)
    moving = Moving((Group(tuple(sorted(names)), 1e-2, 0.0),))
    weights = named_weights(state.model)
    optimizer = make_optimizer(moving, weights)
    run = StageRun(state.model, optimizer, Turns(steady(moving.selected), names, state.model, optimizer))
    given, given_losses = iter(accuracies), iter(losses)
    seen = Seen(state)
    progress = run_stage(
        run,
        Updates(examples, 8, 8, 0, partial(TASK.collate, tokenizer=tokenizer)),
        TASK.summed_loss,
        Machine(torch.device("cpu"), torch.float32),
        plan,
        evaluate=lambda: Scores({"accuracy": next(given, accuracies[-1]), "loss": next(given_losses, losses[-1])}),
        save=save,
        watcher=seen,
        stop_requested=stop_requested,
        progress=Progress(),
    )
    if averages is not None:
        averages.append(run.average["classifier.weight"])
    return progress, seen


def test_the_best_weights_are_kept(state: ModelState, bert: Path) -> None:
    progress, seen = train(state, bert, PLAN, [0.5, 0.7, 0.9, 0.8, 0.6])
    assert (progress.update, progress.best_update) == (10, 6)
    assert torch.equal(named_weights(state.model)["classifier.weight"], seen.weights[6])
    assert not torch.equal(seen.weights[6], seen.weights[10])


def test_later_weights_are_kept_that_are_not_clearly_behind_the_best(state: ModelState, bert: Path) -> None:
    """They are compared with the highest score, so that many small losses do not add up to a large one."""
    progress, seen = train(state, bert, PLAN, [0.5, 0.9, 0.88, 0.86, 0.83])
    assert (progress.update, progress.best_update) == (10, 8)
    assert progress.best is not None
    assert progress.best.values["accuracy"] == 0.86
    assert torch.equal(named_weights(state.model)["classifier.weight"], seen.weights[8])


def test_the_last_weights_are_kept_when_asked(state: ModelState, bert: Path) -> None:
    progress, seen = train(state, bert, replace(PLAN, keep="last"), [0.5, 0.7, 0.9, 0.8, 0.6])
    assert progress.last is not None
    assert progress.last.values["accuracy"] == 0.6
    assert torch.equal(named_weights(state.model)["classifier.weight"], seen.weights[10])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_patience_counts_evaluations_without_a_better_score(state: ModelState, bert: Path, keep: str) -> None:
    plan = replace(PLAN, max_updates=100, patience=2, keep=keep)  # type: ignore[arg-type]
    progress, _ = train(state, bert, plan, [0.5, 0.7, 0.6, 0.8, 0.8, 0.7, 0.9])
    assert (progress.update, progress.best_update) == (12, 10)


def test_a_score_that_is_enough_ends_a_stage(state: ModelState, bert: Path) -> None:
    plan = replace(PLAN, max_updates=100, enough={"accuracy": 0.8})
    progress, _ = train(state, bert, plan, [0.5, 0.7, 0.8, 0.9])
    assert progress.update == 6
    progress, _ = train(state, bert, replace(plan, enough={"accuracy": 0.95, "loss": 1.0}), [0.5])
    assert progress.update == 2


def test_patience_may_watch_the_loss(state: ModelState, bert: Path) -> None:
    """Accuracy rises to the end, the loss does not."""
    plan = replace(PLAN, max_updates=100, patience=2, patience_metric="loss")
    rising = [0.5, 0.6, 0.7, 0.8, 0.9]
    progress, _ = train(state, bert, plan, rising, losses=[1.0, 0.5, 0.6, 0.5, 0.1])
    assert (progress.update, progress.best_update) == (8, 8)


def test_tokens_end_a_stage_and_drive_the_rate(state: ModelState, bert: Path) -> None:
    whole, _ = train(state, bert, PLAN, [0.5])
    plan = replace(PLAN, max_updates=None, max_tokens=whole.num_tokens / 2)
    progress, _ = train(state, bert, plan, [0.5])
    assert progress.num_tokens >= whole.num_tokens / 2
    assert progress.num_tokens * (progress.update - 1) / progress.update < whole.num_tokens / 2 + 100
    assert progress.update in (5, 6)
    assert plan.progress(1, 0.0, whole.num_tokens // 4) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("weight", "shares"), [(None, [1 / 3, 1 / 3, 1 / 3]), (0.5, [0.25, 0.25, 0.5])])
def test_the_running_average_is_over_the_evaluations(
    state: ModelState, bert: Path, weight: float | None, shares: list[float]
) -> None:
    share = (lambda number: 1 / number) if weight is None else (lambda number: weight)
    averages: list[torch.Tensor] = []
    _, seen = train(state, bert, replace(PLAN, max_updates=6, average_share=share), [0.5], averages=averages)
    expected = sum(share * seen.weights[update] for share, update in zip(shares, (2, 4, 6), strict=True))
    torch.testing.assert_close(averages[0], expected)


def test_a_frozen_body_costs_a_third(state: ModelState, bert: Path) -> None:
    tokenizer = load_tokenizer(str(bert))
    examples = TASK.encode(tiny.make_table(40), tokenizer, 32).examples
    batches = [TASK.collate(examples[:8], tokenizer), TASK.collate(examples[8:16], tokenizer)]
    machine = Machine(torch.device("cpu"), torch.float32)
    costs = []
    for names in (frozenset(named_weights(state.model)), state.head):
        free_only(state.model, names)
        costs.append(flops_per_token(state.model, batches, TASK.summed_loss, machine))
    assert costs[1] / costs[0] == pytest.approx(1 / 3, rel=0.05)
    assert all(weight.grad is None for weight in state.model.parameters())


def test_time_ends_a_stage_and_the_last_update_is_evaluated(state: ModelState, bert: Path) -> None:
    plan = replace(PLAN, max_updates=None, max_seconds=0.3, evaluate_every=100_000)
    progress, _ = train(state, bert, plan, [0.5])
    assert progress.update == progress.evaluated > 1
    assert 0.3 <= progress.seconds < 3
    assert plan.progress(1, 0.15) == pytest.approx(0.5)


def test_the_nearest_limit_drives_the_rate() -> None:
    plan = replace(PLAN, max_updates=10, max_seconds=100.0)
    assert plan.progress(5, 0.0) == pytest.approx(0.45)
    assert plan.progress(5, 90.0) == pytest.approx(0.9)


def test_saves_at_its_interval_and_on_request(state: ModelState, bert: Path) -> None:
    saved: list[int] = []
    plan = replace(PLAN, checkpoint_updates=3)
    train(state, bert, plan, [0.5], save=lambda progress: saved.append(progress.update))
    assert saved == [3, 6, 9]
    with pytest.raises(Interrupted):
        train(
            state,
            bert,
            PLAN,
            [0.5],
            save=lambda progress: saved.append(progress.update),
            stop_requested=lambda: True,
        )
    assert saved == [3, 6, 9, 1]


def test_progress_survives_json() -> None:
    scores = Scores({"accuracy": 0.5}, {"confusion": {"a": {"a": 1}}})
    progress = Progress(5, 1.5, 100, 4, 2, best=scores, last=scores, waited=1)
    assert Progress.from_json(progress.to_json()) == progress
    assert Progress.from_json(Progress().to_json()) == Progress()
