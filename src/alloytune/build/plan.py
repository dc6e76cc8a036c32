"""From a stage to its updates, and to when it ends."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from alloytune.build.pace import in_training_form, make_stage_clip, make_stage_schedule
from alloytune.build.session import Session
from alloytune.evaluate.compare import clearly_behind
from alloytune.learning import Learning
from alloytune.recipe.types.ending import Patience, Retry, Until
from alloytune.recipe.types.stage import Stage, retry_of
from alloytune.recipe.types.values import read_interval, read_multiplier
from alloytune.tasks.abilities import Undivided, Varying
from alloytune.tasks.task import Batch, Example
from alloytune.train.batches import Updates
from alloytune.train.flops import flops_per_token
from alloytune.train.stage import StagePlan


def build_updates(session: Session, number: int, attempt: int) -> Updates:
    """Make the series of updates of a stage."""
    updates = _updates_of(session, session.learning, session.seed(number, attempt))
    names = dict.fromkeys(session.recipe.beside(number).values())
    beside = {
        name: _updates_of(session, session.learnings[name], session.seed(number, attempt, place))
        for place, name in enumerate(names)
    }
    return replace(updates, beside=beside)


def _updates_of(session: Session, learning: Learning, seed: int) -> Updates:
    recipe, task = session.recipe, learning.task
    collate = partial(task.collate, tokenizer=session.tokenizer)
    is_whole = isinstance(task, Undivided)

    def whole(examples: Sequence[Example]) -> Batch:
        return replace(collate(examples), pass_size=recipe.micro_batch)

    return Updates(
        learning.examples["train"],
        recipe.batch,
        recipe.batch if is_whole else recipe.micro_batch or recipe.batch,
        seed,
        whole if is_whole else collate,
        task.varied if isinstance(task, Varying) else None,
        pass_tokens=sys.maxsize if is_whole else session.machine.pass_tokens,
    )


def build_plan(session: Session, number: int, attempt: int, updates: Updates) -> StagePlan:
    """Translate a stage's `until`, `schedule` and what goes with them into updates, tokens and seconds.

    The weights that may move must be free by now, and no others: they decide what an update costs.
    """
    recipe, updates_per_epoch = session.recipe, updates.per_epoch
    stage = recipe.stages[number]
    until = stage.until
    amount, unit = read_interval(recipe.checkpoint)
    metric = recipe.view(number).scored_by
    return StagePlan(
        seed=session.seed(number, attempt),
        schedule=make_stage_schedule(stage),
        clip=make_stage_clip(stage),
        max_updates=_max_updates(until, updates_per_epoch),
        max_seconds=until.minutes * 60 if until.minutes else None,
        patience=until.patience.evaluations if isinstance(until.patience, Patience) else until.patience,
        evaluate_every=in_updates(stage.evaluate, updates_per_epoch),
        keep=stage.keep,
        metric=metric,
        clearly_behind=partial(clearly_behind, metric, values=session.task.values, seed=recipe.seed),
        checkpoint_updates=None if unit == "minute" else in_updates(recipe.checkpoint, updates_per_epoch),
        checkpoint_seconds=amount * 60 if unit == "minute" else None,
        max_tokens=_tokens_for(until.flops, session, number, updates) if until.flops else None,
        patience_metric=until.patience.metric if isinstance(until.patience, Patience) else None,
        enough=_enough(until.score, metric),
        average_share=_average_share(stage),
    )


def fixed_updates(session: Session, number: int) -> int | None:
    """Give how many updates make up a stage; None where time or operations may end it before."""
    until = session.recipe.stages[number].until
    if until.minutes or until.flops:
        return None
    return _max_updates(until, build_updates(session, number, attempt=0).per_epoch)


def _max_updates(until: Until, updates_per_epoch: int) -> int | None:
    limits = [until.updates] if until.updates else []
    if until.epochs:
        updates = until.epochs * updates_per_epoch
        limits.append(max(1, math.ceil(round(updates, 6))))  # 0.07 * 100 is 7.000000000000001
    return min(limits) if limits else None


def _average_share(stage: Stage) -> Callable[[int], float] | None:
    if stage.combine is None or stage.combine.how != "running-average":
        return None
    weight = stage.combine.weight
    return (lambda number: 1 / number) if weight is None else (lambda number: float(weight))  # type: ignore[arg-type]


def _tokens_for(flops: float, session: Session, number: int, updates: Updates) -> float:
    """Give how many tokens can be read for so many operations, by the cost of the stage's first update."""
    first = next(updates.after(0))
    with in_training_form(session, number):
        once = flops_per_token(session.state.model, first, session.task.summed_loss, session.machine)
    return flops / (once * (2 if session.recipe.stages[number].r_drop else 1))  # R-Drop passes twice over its tokens


def _enough(score: float | Mapping[str, float] | None, metric: str) -> dict[str, float]:
    if score is None:
        return {}
    return dict(score) if isinstance(score, Mapping) else {metric: score}


def retries(stage: Stage) -> tuple[int, float]:
    """Give how often a stage may be tried again, and what its rates are multiplied with each time."""
    retry = retry_of(stage)
    return (0, read_multiplier(Retry().rate)) if retry is None else (retry.times, read_multiplier(retry.rate))


def in_updates(interval: str, updates_per_epoch: int) -> int:
    """Translate an interval; at least one update."""
    amount, unit = read_interval(interval)
    return int(amount) if unit == "update" else max(1, round(amount * updates_per_epoch))
