"""What a run will cost, measured: a few updates of every stage at rate zero, then thrown away."""

import math
import time
from dataclasses import dataclass
from math import prod

from alloytune import build
from alloytune.build import Session
from alloytune.evaluate.predict import ROWS_PER_BATCH, predict
from alloytune.models.weights import named_weights
from alloytune.stages import begin_stage
from alloytune.train.loop import training_steps
from alloytune.train.moving import make_optimizer

PROBED_UPDATES = 3  # after one that warms up


@dataclass(frozen=True)
class StageEstimate:
    """What a stage moves and costs. `num_updates` is None where only time ends it."""

    name: str
    train: str
    attached: str
    rates: list[float]
    num_trained: int
    num_parameters: int
    num_updates: int | None
    max_seconds: float | None
    num_evaluations: int
    seconds_per_update: float
    peak_memory_bytes: int

    @property
    def seconds(self) -> float:
        """Give the training time if patience does not end the stage."""
        by_updates = self.num_updates * self.seconds_per_update if self.num_updates else math.inf
        return min(by_updates, self.max_seconds or math.inf)


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
    stages = tuple(_probe(session, number) for number in range(len(session.recipe.stages)))
    num_evaluations = 1 + sum(stage.num_evaluations for stage in stages)
    num_scored = num_evaluations * len(session.examples["validation"]) + len(session.examples["test"])
    return Estimate(stages, _seconds_per_row(session), num_scored)


def _probe(session: Session, number: int) -> StageEstimate:
    stage = session.recipe.stages[number]
    moving = begin_stage(session, number)
    roles = session.state.roles()
    updates = build.build_updates(session, number, attempt=0)
    plan = build.build_plan(session.recipe, number, 0, updates.per_epoch)
    session.machine.reset_peak()
    steps = training_steps(
        session.state.model,
        make_optimizer(moving, named_weights(session.state.model)),
        updates.after(0),
        session.task.summed_loss,
        session.machine,
        multiplier=lambda update: 0.0,
        clip=stage.clip,
        seed=0,
    )
    next(steps)
    began = time.perf_counter()
    for _ in range(PROBED_UPDATES):
        next(steps)
    seconds = (time.perf_counter() - began) / PROBED_UPDATES
    attachment = session.state.attachment
    num_updates = min(plan.max_updates or math.inf, (plan.max_seconds or math.inf) / seconds)
    return StageEstimate(
        name=stage.name,
        train=stage.train,
        attached="" if attachment is None else attachment.settings.kind,
        rates=moving.rates,
        num_trained=sum(prod(roles.shapes[name]) for name in moving.names),
        num_parameters=sum(map(prod, roles.shapes.values())),
        num_updates=plan.max_updates,
        max_seconds=plan.max_seconds,
        num_evaluations=max(1, round(num_updates / plan.evaluate_every)),
        seconds_per_update=seconds,
        peak_memory_bytes=session.machine.peak_bytes(),
    )


def _seconds_per_row(session: Session) -> float:
    examples = session.examples["validation"][: 2 * ROWS_PER_BATCH]
    began = time.perf_counter()
    predict(session.state.model, session.task, examples, session.tokenizer, session.machine)
    return (time.perf_counter() - began) / len(examples)
