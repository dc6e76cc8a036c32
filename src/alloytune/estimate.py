"""What a run will cost, measured: a few updates of every stage at rate zero, then thrown away.

Full fine-tuning of the same model is measured beside it, so that a stage's cost can be told as a part of that.
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from math import prod

from alloytune import build
from alloytune.build import Session
from alloytune.caching import make_reader
from alloytune.evaluate.predict import ROWS_PER_BATCH, predict
from alloytune.joint import make_around, make_training_loss, typical_updates
from alloytune.learning import Learning
from alloytune.models.weights import free_only, named_weights
from alloytune.pace import in_training_form, make_stage_optimizer
from alloytune.stages import begin_stage
from alloytune.tasks.task import Batch
from alloytune.tasks.tokenized import count_tokens
from alloytune.train.batches import Updates
from alloytune.train.clip import make_clip
from alloytune.train.flops import count_flops
from alloytune.train.loop import Loss, Step, training_steps
from alloytune.train.moving import Group, Moving, make_optimizer
from alloytune.train.optimizers import Optimizer
from alloytune.train.prefix_reader import PrefixReader
from alloytune.train.range_test import SEARCH_SHARE
from alloytune.train.turns import Course, Turns, steady

PROBED_UPDATES = 3  # after one that warms up


@dataclass(frozen=True)
class UpdateCost:
    """What an update costs. `flops` are floating-point operations forward and backward, on one and the same batch."""

    seconds: float
    flops: int
    peak_memory_bytes: int


_NOTHING = UpdateCost(0.0, 0, 0)


@dataclass(frozen=True)
class StageEstimate:
    """What a stage moves and costs. `num_updates` is None where only time ends it; `full` is full training's."""

    name: str
    train: str
    attached: str
    rates: list[float]
    num_trained: int
    num_parameters: int
    num_updates: int | None
    max_seconds: float | None
    num_evaluations: int
    searches: bool  # for a rate
    update: UpdateCost
    full: UpdateCost
    keeping_seconds: float = 0.0  # to compute, once, what frozen layers give

    @property
    def seconds(self) -> float:
        """Give the time of training, and of the search for its rate, if patience does not end the stage."""
        by_updates = math.inf if self.num_updates is None else self.num_updates * self.update.seconds
        by_updates = by_updates * (1 + SEARCH_SHARE * self.searches) + self.keeping_seconds
        return min(by_updates, (self.max_seconds or math.inf) * (1 + SEARCH_SHARE * self.searches))

    @property
    def flops_share(self) -> float:
        """Give the operations of an update as a part of full fine-tuning's."""
        return self.update.flops / self.full.flops

    @property
    def memory_share(self) -> float:
        """Give the memory of an update as a part of full fine-tuning's."""
        return self.update.peak_memory_bytes / self.full.peak_memory_bytes


@dataclass(frozen=True)
class Estimate:
    """The cost of a whole run on this machine."""

    stages: tuple[StageEstimate, ...]
    seconds_per_row: float  # of scoring
    num_scored: int  # rows scored over the whole run, test included

    @property
    def seconds(self) -> float:
        """Give the time of training and scoring."""
        return sum(stage.seconds for stage in self.stages) + self.seconds_per_row * self.num_scored


def estimate(session: Session) -> Estimate:
    """Measure every stage of a session's recipe. The session's model is not fit for training afterwards."""
    full = _full_cost(session)
    stages = tuple(_probe(session, number, full) for number in range(len(session.recipe.stages)))
    num_evaluations = 1 + sum(stage.num_evaluations for stage in stages)
    num_scored = num_evaluations * len(session.examples["validation"]) + len(session.examples["test"])
    return Estimate(stages, _seconds_per_row(session), num_scored)


def _full_cost(session: Session) -> UpdateCost:
    """Measure an update of full fine-tuning, before any adapter is there."""
    names = frozenset(named_weights(session.state.model))
    free_only(session.state.model, names)
    moving = Moving((Group(tuple(sorted(names)), 1.0, 0.0),))
    optimizer = make_optimizer(moving, named_weights(session.state.model))
    turns = Turns(steady(moving.selected), moving.names, session.state.model, optimizer)
    updates = replace(build.build_updates(session, 0, attempt=0), beside={})
    with in_training_form(session, 0):
        return _cost(session, turns, optimizer, session.task.summed_loss, updates)


def _probe(session: Session, number: int, full: UpdateCost) -> StageEstimate:
    """Measure a stage; where it combines, the model stays as it is."""
    stage = session.recipe.stages[number]
    moving, course = begin_stage(session, number)
    shapes = session.state.roles().shapes
    training = _training(session, number, moving, course) if moving.groups else _Training()
    combination = build.build_combination(session, number)
    return StageEstimate(
        name=stage.name,
        train=stage.trained or (stage.combine.how if stage.combine else ""),
        attached=", ".join(attachment.name for attachment in session.state.attachments),
        rates=moving.rates,
        num_trained=training.num_moving,
        num_parameters=sum(map(prod, shapes.values())),
        num_updates=training.num_updates,
        max_seconds=training.max_seconds,
        num_evaluations=training.num_evaluations
        + (stage.combine is not None)
        + (0 if combination is None else combination.most_evaluations),
        searches=any(group.start is not None for group in moving.groups),
        update=training.update,
        full=full,
        keeping_seconds=training.keeping_seconds,
    )


@dataclass(frozen=True)
class _Training:
    """What the training of a stage moves and costs."""

    num_moving: int = 0
    num_updates: int | None = 0
    max_seconds: float | None = None
    num_evaluations: int = 0
    update: UpdateCost = _NOTHING
    keeping_seconds: float = 0.0


def _training(session: Session, number: int, moving: Moving, course: Course) -> _Training:
    """Count the updates of a stage, and measure one in the turn at its middle, or in each view that may be drawn."""
    updates = build.build_updates(session, number, attempt=0)
    plan = build.build_plan(session, number, 0, updates)
    optimizer = make_stage_optimizer(session, number, moving)
    around = make_around(session, number, course)
    turns = Turns(course, moving.names, session.state.model, optimizer, around=around)
    summed_loss = make_training_loss(session, number, moving, course)
    reader, _ = make_reader(session, number, moving)
    middle = math.ceil((plan.max_updates or updates.per_epoch) / 2)
    with in_training_form(session, number):
        costs = [
            (share, _cost(session, turns, optimizer, summed_loss, updates, update, reader), turns.num_moving)
            for update, share in typical_updates(course, middle).items()
        ]
    update = UpdateCost(
        seconds=sum(share * cost.seconds for share, cost, _ in costs),
        flops=round(sum(share * cost.flops for share, cost, _ in costs)),
        peak_memory_bytes=max(cost.peak_memory_bytes for _, cost, _ in costs),
    )
    per_epoch = int(count_tokens(updates.examples).sum())
    by_tokens = (plan.max_tokens or math.inf) / (per_epoch / updates.per_epoch)
    most = min(plan.max_updates or math.inf, by_tokens)
    num_updates = min(most, (plan.max_seconds or math.inf) / update.seconds)
    return _Training(
        num_moving=max(num_moving for _, _, num_moving in costs),
        num_updates=None if math.isinf(most) else math.ceil(most),
        max_seconds=plan.max_seconds,
        num_evaluations=max(1, round(num_updates / plan.evaluate_every)),
        update=update,
        keeping_seconds=reader.seconds * per_epoch / max(reader.tokens_kept, 1),
    )


def _cost(
    session: Session,
    turns: Turns,
    optimizer: Optimizer,
    summed_loss: Loss,
    updates: Updates,
    update: int = 1,
    reader: PrefixReader | None = None,
) -> UpdateCost:
    """Measure updates like `update` at rate zero: time and memory over a few, operations over one fixed batch.

    The time is that of updates that read back what frozen layers gave, if they are kept; the operations count them.
    """
    model = session.state.model
    held = turns.at(update, 0.5)
    session.machine.reset_peak()
    loss = summed_loss if reader is None else reader.loss(summed_loss)

    def steps() -> Iterator[Step]:
        return training_steps(
            model,
            optimizer,
            updates.after(0),
            loss,
            session.machine,
            still=lambda number: held,
            multiplier=lambda update: 0.0,
            clip=make_clip(None),
            seed=0,
        )

    with nullcontext() if reader is None else reader.running():
        warming = PROBED_UPDATES + 1 if reader and reader.shelf else 0
        deque(islice(steps(), warming), maxlen=0)  # what the updates below read is kept by then
        probed = steps()
        next(probed)
        began = time.perf_counter()
        for _ in range(PROBED_UPDATES):
            next(probed)
        seconds = (time.perf_counter() - began) / PROBED_UPDATES
    peak = session.machine.peak_bytes()
    batches = [_first_batch(session, None, session.learning)]
    batches += [_first_batch(session, name, session.learnings[name]) for name in updates.beside]
    return UpdateCost(seconds, count_flops(model, batches, summed_loss, session.machine), peak)


def _first_batch(session: Session, name: str | None, learning: Learning) -> Batch:
    """Give the first rows of what is learned as one batch that bears its name."""
    batch = learning.task.collate(learning.examples["train"][: session.recipe.batch], session.tokenizer)
    return replace(batch, learning=name)


def _seconds_per_row(session: Session) -> float:
    examples = session.examples["validation"][: 2 * ROWS_PER_BATCH]
    began = time.perf_counter()
    predict(session.state.model, session.task, examples, session.tokenizer, session.machine)
    return (time.perf_counter() - began) / len(examples)
