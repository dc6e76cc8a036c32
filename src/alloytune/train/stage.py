"""One stage of training around the loop: evaluate, keep the best, stop in time, save what a resume needs."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from alloytune.errors import Interrupted, NotFiniteError
from alloytune.machine import Machine
from alloytune.metrics import reaches
from alloytune.models.combine import mix
from alloytune.models.weights import copy_weights, named_weights, put_weights
from alloytune.tasks.task import Scores
from alloytune.train.batches import Updates
from alloytune.train.clip import Clip
from alloytune.train.loop import Loss, Step, training_steps
from alloytune.train.optimizers import Optimizer
from alloytune.train.schedule import Schedule
from alloytune.train.turns import Turns


@dataclass(frozen=True)
class StagePlan:
    """How long a stage trains and how it is watched; intervals are in updates unless named otherwise.

    `patience` counts evaluations without a better `patience_metric` (`metric` where None). `enough` are scores by
    metric that end the stage, each alone. `clearly_behind` compares the best scores by `metric` with later ones; to
    keep the best is to keep the last that are not. `average_share` gives the share that the nth evaluation's weights
    have in the running average, if there is to be one.
    """

    seed: int
    schedule: Schedule
    clip: Clip
    max_updates: int | None
    max_seconds: float | None
    patience: int | None
    evaluate_every: int
    keep: Literal["best", "last"]
    metric: str
    clearly_behind: Callable[[Scores, Scores], bool]
    checkpoint_updates: int | None = None
    checkpoint_seconds: float | None = None
    max_tokens: float | None = None
    patience_metric: str | None = None
    enough: Mapping[str, float] = field(default_factory=dict)
    average_share: Callable[[int], float] | None = None

    def progress(self, update: float, seconds: float, num_tokens: int = 0) -> float:
        """Give how much of the stage lies behind the middle of an update, 0 to 1, by the nearest limit.

        `num_tokens` have been read before it.
        """
        by_updates = (update - 0.5) / self.max_updates if self.max_updates else 0.0
        by_seconds = seconds / self.max_seconds if self.max_seconds else 0.0
        by_tokens = num_tokens / self.max_tokens if self.max_tokens else 0.0
        return max(by_updates, by_seconds, by_tokens)


@dataclass(frozen=True)
class Progress:
    """Where a stage stands; with the weights and the optimizer's memory all that a resume needs."""

    update: int = 0
    seconds: float = 0.0  # of training alone
    num_tokens: int = 0
    evaluated: int = 0  # update of the last evaluation
    best_update: int = 0
    best: Scores | None = None  # the last that are not clearly behind the highest
    highest: Scores | None = None
    last: Scores | None = None
    waited: int = 0  # evaluations since the best, by the metric of `patience`
    to_beat: list[float] | None = None  # rank of that one
    num_evaluations: int = 0
    num_moved: int = 0  # elements that moved, summed over the updates

    def to_json(self) -> dict[str, Any]:
        """Give the fields in JSON's types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Progress":
        """Read what `to_json` gave."""
        scores = {key: None if value[key] is None else Scores(**value[key]) for key in ("best", "highest", "last")}
        return cls(**{**value, **scores})


class StageWatcher(Protocol):
    """Who is told of every update and every evaluation."""

    def on_step(self, step: Step, progress: Progress) -> None:
        """Take note of a finished update."""

    def on_scores(self, scores: Scores, progress: Progress) -> None:
        """Take note of an evaluation within the stage."""


@dataclass
class StageRun:
    """The moving parts of a stage that is being trained.

    `best` holds the weights of the best evaluation, unless training ended with it;
    `average` the running average over all.
    """

    model: nn.Module
    optimizer: Optimizer
    turns: Turns
    best: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)


def run_stage(
    run: StageRun,
    updates: Updates,
    summed_loss: Loss,
    machine: Machine,
    plan: StagePlan,
    *,
    evaluate: Callable[[], Scores],
    save: Callable[[Progress], None],
    watcher: StageWatcher,
    stop_requested: Callable[[], bool],
    progress: Progress,
) -> Progress:
    """Train a stage to its end and leave the kept weights in the model; give its last progress.

    `progress` is where to go on from. Raises Interrupted, after saving, when a stop was requested.
    """
    clock, saved = _Clock(progress.seconds), _Saved(plan, progress.update)

    def behind(update: float) -> float:
        return plan.progress(update, clock.seconds(), progress.num_tokens)

    steps = training_steps(
        run.model,
        run.optimizer,
        updates.after(progress.update),
        summed_loss,
        machine,
        still=lambda update: run.turns.at(update, behind(update - 0.5)),
        multiplier=lambda update: plan.schedule(behind(update)),
        clip=plan.clip,
        seed=plan.seed,
        done=progress.update,
    )
    while not _ended(plan, progress):
        with clock.running():
            step = next(steps)
        progress = _after(step, progress, clock.seconds(), run.turns.num_moving)
        watcher.on_step(step, progress)
        is_due = saved.is_due(progress.update)
        if step.update % plan.evaluate_every == 0 or _ended(plan, progress):
            progress = _judge(run, plan, progress, evaluate, watcher)
        is_stopping = stop_requested()
        if is_due or is_stopping:
            _stop_unless_finite(run, progress.update)
            save(progress)
            saved.note(progress.update)
        if is_stopping:
            raise Interrupted("stopped; everything up to the last update is saved")
    if plan.keep == "best" and progress.best_update < progress.update:
        put_weights(run.model, run.best)
    return progress


def _after(step: Step, progress: Progress, seconds: float, num_moving: int) -> Progress:
    return replace(
        progress,
        update=step.update,
        seconds=seconds,
        num_tokens=progress.num_tokens + step.num_tokens,
        num_moved=progress.num_moved + num_moving,
    )


def _judge(
    run: StageRun, plan: StagePlan, progress: Progress, evaluate: Callable[[], Scores], watcher: StageWatcher
) -> Progress:
    """Score the weights as they are now, and keep a copy of them if they are to be kept while training goes on."""
    _stop_unless_finite(run, progress.update)
    run.optimizer.eval()
    scores = evaluate()
    progress = _judged(run, plan, progress, scores)
    watcher.on_scores(scores, progress)
    if plan.keep == "best" and progress.best_update == progress.update and not _ended(plan, progress):
        _copy_into(run.best, run.model, run.turns.names)
    return progress


def _judged(run: StageRun, plan: StagePlan, progress: Progress, scores: Scores) -> Progress:
    """Take an evaluation into account; equal scores are told apart by the loss."""
    rank = scores.rank(plan.patience_metric or plan.metric)
    waits = progress.to_beat is not None and rank <= progress.to_beat
    progress = replace(
        progress,
        evaluated=progress.update,
        num_evaluations=progress.num_evaluations + 1,
        last=scores,
        waited=progress.waited + 1 if waits else 0,
        to_beat=progress.to_beat if waits else rank,
    )
    if plan.average_share is not None:
        run.average = _averaged(run, plan.average_share(progress.num_evaluations))
    if progress.highest is None or scores.rank(plan.metric) > progress.highest.rank(plan.metric):
        return replace(progress, highest=scores, best=scores, best_update=progress.update)
    if not plan.clearly_behind(progress.highest, scores):
        return replace(progress, best=scores, best_update=progress.update)
    return progress


@torch.no_grad()
def _copy_into(copies: dict[str, Tensor], model: nn.Module, names: Iterable[str]) -> None:
    """Make copies those of the weights as they are now; where they are there already, in their own memory."""
    if not copies:
        copies.update(copy_weights(model, names))
        return
    weights = named_weights(model)
    for name, copy in copies.items():
        copy.copy_(weights[name])


def _stop_unless_finite(run: StageRun, update: int) -> None:
    """Stop before weights that an update has ruined are scored or saved; the loop itself looks before updates only."""
    for name, weight in named_weights(run.model).items():
        if name in run.turns.names and not all(map(torch.isfinite, torch.aminmax(weight))):  # without a copy
            raise NotFiniteError(
                f"update {update}: it left {name} not finite; nothing of it was saved. "
                "A lower rate, a longer warm-up or precision: float32 usually mends it"
            )


def _averaged(run: StageRun, share: float) -> dict[str, Tensor]:
    """Give the running average with the weights as they are now taken in."""
    now = copy_weights(run.model, run.turns.names)
    return mix(run.average, [now], [share]) if run.average else now


def _ended(plan: StagePlan, progress: Progress) -> bool:
    return (
        (plan.max_updates is not None and progress.update >= plan.max_updates)
        or (plan.max_seconds is not None and progress.seconds >= plan.max_seconds)
        or (plan.max_tokens is not None and progress.num_tokens >= plan.max_tokens)
        or (plan.patience is not None and progress.waited >= plan.patience)
        or (progress.last is not None and _is_enough(plan.enough, progress.last))
    )


def _is_enough(enough: Mapping[str, float], scores: Scores) -> bool:
    return any(reaches(metric, scores.values[metric], value) for metric, value in enough.items())


class _Saved:
    """When a stage was saved last: it is due again after as many updates, or as much time, as its plan says."""

    def __init__(self, plan: StagePlan, update: int) -> None:
        self._plan = plan
        self.note(update)

    def note(self, update: int) -> None:
        self._update, self._at = update, time.monotonic()

    def is_due(self, update: int) -> bool:
        updates, seconds = self._plan.checkpoint_updates, self._plan.checkpoint_seconds
        return (updates is not None and update - self._update >= updates) or (
            seconds is not None and time.monotonic() - self._at >= seconds
        )


class _Clock:
    """Seconds of training, evaluation and saving left out."""

    def __init__(self, seconds: float) -> None:
        self._before = seconds
        self._started: float | None = None

    def seconds(self) -> float:
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + running

    def running(self) -> "_Clock":
        return self

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._before, self._started = self.seconds(), None
