"""What a run will cost: the time of a few updates of every stage at rate zero, and operations and memory, counted.

Full fine-tuning of the same model is counted beside it, so that a stage's cost can be told as a part of that. Only a
few rows are tried at a time; whatever grows with the rows is taken to grow with their tokens.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import prod

from alloytune.build.caching import make_reader
from alloytune.build.combining import build_combination
from alloytune.build.joint import make_training_loss, typical_updates
from alloytune.build.pace import in_training_form, make_stage_optimizer, row_tables
from alloytune.build.plan import build_plan, build_updates
from alloytune.build.session import Session
from alloytune.evaluate.predict import ROWS_PER_PASS, predict, scoring_passes
from alloytune.models.weights import free_only, named_weights
from alloytune.recipe.types.stage import may_be_lost
from alloytune.stages.course import make_turns
from alloytune.stages.rate_search import num_searching
from alloytune.stages.stage import begin_stage
from alloytune.tasks.abilities import Sparing
from alloytune.tasks.task import Batch, Example, Task
from alloytune.tasks.tokenized import count_tokens
from alloytune.train.activations import IN_MEMORY
from alloytune.train.batches import Updates
from alloytune.train.clip import make_clip
from alloytune.train.flops import count_flops
from alloytune.train.loop import Loss, Step, training_steps
from alloytune.train.moving import Group, Moving, Still, make_optimizer
from alloytune.train.optimizers import Optimizer
from alloytune.train.prefix_reader import PrefixReader
from alloytune.train.range_test import SEARCH_SHARE
from alloytune.train.sampling import alike, few_updates, heaviest_rows, spread, tokens_per_row, tokens_per_update
from alloytune.train.tensor_memory import CountMemory, count_activations, gradient_bytes, optimizer_bytes
from alloytune.train.turns import Course, Turns, steady

TIMED_UPDATES = 2
TIMED_TOKENS = 1024  # in an update; half as many take a third more time by token, as an optimizer's step costs the same
MOST_TOKENS = 512  # in what is counted at a time
LEAST_ROWS = 4  # so that half of them are a batch for any loss
FEW_WRITTEN, MANY_WRITTEN = 2, 6  # tokens of answers that are counted: a token takes as long as an update


@dataclass(frozen=True)
class UpdateCost:
    """What an update costs. `flops` are floating-point operations forward and backward, on one and the same batch.

    `kept_flops` are those of frozen layers that read back what they gave, instead of running in every epoch. The memory
    is that of the heaviest batch, or of scoring where that takes more, with all that the process holds.
    """

    seconds: float
    flops: int
    peak_memory_bytes: int
    kept_flops: int = 0


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
    keeping_flops: int = 0

    @property
    def flops(self) -> float:
        """Give the operations of training, and of the search for its rate; none where only time ends the stage."""
        return (self.num_updates or 0) * (1 + SEARCH_SHARE * self.searches) * self.update.flops + self.keeping_flops

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


def estimate(session: Session, tell: Callable[[str], None] = lambda _: None) -> Estimate:
    """Try every stage of a session's recipe; `tell` is told its name first.

    The session's model is not fit for training afterwards.
    """
    held = _held(session)
    full = _full_cost(session, held)
    stages = []
    for number, stage in enumerate(session.recipe.stages):
        tell(stage.name)
        stages.append(_probe(session, number, full, held))
    num_evaluations = 1 + sum(stage.num_evaluations for stage in stages)
    num_scored = num_evaluations * len(session.examples["validation"]) + len(session.examples["test"])
    return Estimate(tuple(stages), _seconds_per_row(session), num_scored)


def _held(session: Session) -> int:
    """Give what the process holds with every weight in memory: a file's part that is only mapped does not count yet."""
    for weight in named_weights(session.state.model).values():
        weight.detach().sum()
    return session.machine.held_bytes()


def _full_cost(session: Session, held: int) -> UpdateCost:
    """Count what full fine-tuning costs, before any adapter is there; its time is not asked for."""
    names = frozenset(named_weights(session.state.model))
    free_only(session.state.model, names)
    moving = Moving((Group(tuple(sorted(names)), 1.0, 0.0),))
    optimizer = make_optimizer(moving, named_weights(session.state.model), tables=row_tables(session, 0))
    turns = Turns(steady(moving.selected), moving.names, session.state.model, optimizer)
    updates = replace(build_updates(session, 0, attempt=0), beside={})
    loss = session.task.summed_loss
    with in_training_form(session, 0):
        next(_steps(session, optimizer, loss, _few(updates), turns.at(1, 0.5)))  # the optimizer remembers by then
        memory = held + optimizer_bytes(optimizer) + _passing(session, optimizer, loss, updates, "validation")
        return UpdateCost(0.0, _flops(session, loss, updates), memory)


def _probe(session: Session, number: int, full: UpdateCost, held: int) -> StageEstimate:
    """Try a stage; where it combines, the model stays as it is."""
    stage = session.recipe.stages[number]
    moving, course = begin_stage(session, number)
    shapes = session.state.roles().shapes
    still = _Training(update=UpdateCost(0.0, 0, held))
    training = _training(session, number, moving, course, held) if moving.groups else still
    combination = build_combination(session, number)
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
        searches=num_searching(session, number, moving) > 0,
        update=training.update,
        full=full,
        keeping_seconds=training.keeping_seconds,
        keeping_flops=training.keeping_flops,
    )


@dataclass(frozen=True)
class _Training:
    """What the training of a stage moves and costs."""

    update: UpdateCost
    num_moving: int = 0
    num_updates: int | None = 0
    max_seconds: float | None = None
    num_evaluations: int = 0
    keeping_seconds: float = 0.0
    keeping_flops: int = 0


def _training(session: Session, number: int, moving: Moving, course: Course, held: int) -> _Training:
    """Count the updates of a stage, and try one in the turn at its middle, or in each view that may be drawn."""
    updates = build_updates(session, number, attempt=0)
    plan = build_plan(session, number, 0, updates)
    optimizer = make_stage_optimizer(session, number, moving)
    turns = make_turns(session, number, moving, course, optimizer)
    summed_loss = make_training_loss(session, number, moving, course)
    reader = make_reader(session, number, moving)[0].over(_few(updates).examples)
    way_back = _bytes_of(session, moving.names) if may_be_lost(session.recipe.stages[number]) else 0
    cost_of = partial(_cost, session, turns, optimizer, summed_loss, updates, held + way_back, reader=reader)
    per_epoch = int(count_tokens(updates.examples).sum())
    middle = math.ceil((plan.max_updates or updates.per_epoch) / 2)
    with in_training_form(session, number):
        costs = [
            (share, cost_of(update=update), turns.num_moving)
            for update, share in typical_updates(course, middle).items()
        ]
    update = UpdateCost(
        seconds=sum(share * cost.seconds for share, cost, _ in costs),
        flops=round(sum(share * cost.flops for share, cost, _ in costs)),
        peak_memory_bytes=max(cost.peak_memory_bytes for _, cost, _ in costs),
        kept_flops=round(sum(share * cost.kept_flops for share, cost, _ in costs)),
    )
    by_tokens = (plan.max_tokens or math.inf) / (per_epoch / updates.per_epoch)
    most = min(plan.max_updates or math.inf, by_tokens)
    num_updates = min(most, (plan.max_seconds or math.inf) / update.seconds)
    return _Training(
        num_moving=max(num_moving for _, _, num_moving in costs),
        num_updates=None if math.isinf(most) else math.ceil(most),
        max_seconds=plan.max_seconds,
        num_evaluations=max(1, math.ceil(num_updates / plan.evaluate_every)),
        update=update,
        keeping_seconds=reader.seconds * per_epoch / max(reader.tokens_kept, 1),
        keeping_flops=updates.per_epoch * update.kept_flops,
    )


def _cost(
    session: Session,
    turns: Turns,
    optimizer: Optimizer,
    summed_loss: Loss,
    updates: Updates,
    held: int,
    update: int,
    reader: PrefixReader,
) -> UpdateCost:
    """Try updates like `update` at rate zero: time over a few, operations over one fixed batch, memory at its most.

    Time and operations are those of updates that read back what frozen layers gave, if that is kept.
    `held` is what the process holds before, with copies of weights as they were.
    """
    still, few = turns.at(update, 0.5), _few(updates)
    with reader.running():
        seconds = _seconds_per_token(session, optimizer, summed_loss, few, still, reader) * tokens_per_update(updates)
        passing = _passing(session, optimizer, summed_loss, updates, "train" if reader.shelf else "validation")
    memory = held + _kept_in_memory(session, updates, reader) + optimizer_bytes(optimizer) + passing
    flops = _flops(session, summed_loss, updates)
    kept_flops = flops - _flops(session, summed_loss, updates, reader) if reader.shelf else 0
    return UpdateCost(seconds, flops - kept_flops, memory, kept_flops)


def _seconds_per_token(
    session: Session, optimizer: Optimizer, summed_loss: Loss, updates: Updates, still: Still, reader: PrefixReader
) -> float:
    """Time a few updates at rate zero, after the same have warmed up: shapes, memory and what frozen layers give."""
    loss = reader.loss(summed_loss)
    for _ in range(2):
        began = time.perf_counter()
        num_tokens = sum(
            step.num_tokens for step in islice(_steps(session, optimizer, loss, updates, still), TIMED_UPDATES)
        )
        seconds = time.perf_counter() - began
    return seconds / num_tokens


def _bytes_of(session: Session, names: frozenset[str]) -> int:
    """Give what weights take."""
    return sum(weight.nbytes for name, weight in named_weights(session.state.model).items() if name in names)


def _steps(session: Session, optimizer: Optimizer, loss: Loss, updates: Updates, still: Still) -> Iterator[Step]:
    return training_steps(
        session.state.model,
        optimizer,
        updates.after(0),
        loss,
        session.machine,
        still=lambda number: still,
        multiplier=lambda update: 0.0,
        clip=make_clip(None),
        seed=0,
    )


def _passing(session: Session, optimizer: Optimizer, summed_loss: Loss, updates: Updates, scored: str) -> int:
    """Give the most that is held for a while: in an update, or while rows of the split `scored` are only read."""
    in_update = gradient_bytes(session.state.model, optimizer) + _activations(session, summed_loss, updates)
    return max(in_update, _scoring(session, session.examples[scored]))


def _few(updates: Updates) -> Updates:
    return few_updates(updates, TIMED_UPDATES, TIMED_TOKENS)


def _kept_in_memory(session: Session, updates: Updates, reader: PrefixReader) -> int:
    """Give what the process will hold of what frozen layers give for all rows, once a few have been computed."""
    if reader.shelf is None or session.machine.device.type != "cpu":
        return 0
    num_tokens = int(count_tokens(updates.examples).sum())
    return min(IN_MEMORY, round(reader.shelf.num_bytes * num_tokens / max(reader.tokens_kept, 1)))


def _activations(session: Session, summed_loss: Loss, updates: Updates) -> int:
    """Count what the heaviest forward and backward pass holds beside the gradients of weights."""
    found: list[int] = []
    learned = [(None, updates), *updates.beside.items()]
    for name, series in learned:
        rows = heaviest_rows(replace(series, micro_batch=session.recipe.micro_batch or session.recipe.batch))

        def count(examples: Sequence[Example], name: str | None = name, series: Updates = series) -> int:
            batch = replace(series.collate(examples), learning=name)
            return count_activations(session.state.model, [batch], summed_loss, session.machine)

        found.append(_in_proportion(rows, count))
    return max(found)


def _scoring(session: Session, examples: Sequence[Example]) -> int:
    """Count what scoring the longest rows at a time holds.

    Of answers that are written, the first tokens are counted; what one of them adds, every further token adds.
    """
    task = session.task
    longest = [examples[number] for number in next(scoring_passes(task, examples, session.machine))]
    if not isinstance(task, Sparing) or task.max_new_tokens <= MANY_WRITTEN:
        return _in_proportion(longest, partial(_scored_bytes, session, task))
    few, many = (
        _in_proportion(longest, partial(_scored_bytes, session, task.answering_within(num_tokens)))
        for num_tokens in (FEW_WRITTEN, MANY_WRITTEN)
    )
    by_token = (many - few) / (MANY_WRITTEN - FEW_WRITTEN)
    return round(many + by_token * (task.max_new_tokens - MANY_WRITTEN))


def _scored_bytes(session: Session, task: Task, rows: Sequence[Example]) -> int:
    with CountMemory() as counter:
        predict(session.state.model, task, rows, session.tokenizer, session.machine)
    return int(counter.peak)


def _in_proportion(rows: Sequence[Example], count: Callable[[Sequence[Example]], int]) -> int:
    """Count for a few of the rows, and for half of those; what a token adds there, every further token adds."""
    few = spread(rows, MOST_TOKENS, LEAST_ROWS)
    counted = count(few)
    if len(few) == len(rows):
        return counted
    half = few[::2]
    tokens, of_few, of_half = (int(count_tokens(some).sum()) for some in (rows, few, half))
    by_token = (counted - count(half)) / (of_few - of_half)
    return round(counted + max(by_token, 0.0) * (tokens - of_few))


def _flops(session: Session, summed_loss: Loss, updates: Updates, reader: PrefixReader | None = None) -> int:
    """Count the operations of an update as long as most, over all that is learned in it.

    With a `reader`, what frozen layers give is read back.
    """
    found = 0.0
    for name in (None, *updates.beside):
        learning = session.learnings[name] if name else session.learning
        examples = learning.examples["train"]
        few = alike(examples, MOST_TOKENS, LEAST_ROWS)
        batch = replace(learning.task.collate(few, session.tokenizer), learning=name)
        num_tokens = tokens_per_row(examples) * min(session.recipe.batch, len(examples))
        found += _count(session, batch, few, summed_loss, reader) * num_tokens / int(count_tokens(few).sum())
    return round(found)


def _count(
    session: Session, batch: Batch, examples: Sequence[Example], summed_loss: Loss, reader: PrefixReader | None
) -> int:
    """Count the operations of a batch of examples."""
    model, machine = session.state.model, session.machine
    if reader is None:
        return count_flops(model, [batch], summed_loss, machine)
    kept = reader.over(examples)
    with kept.running():
        loss = kept.loss(summed_loss)
        count_flops(model, [batch], loss, machine)  # computes what the next call reads back
        return count_flops(model, [batch], loss, machine)


def _seconds_per_row(session: Session) -> float:
    examples = session.examples["validation"]
    few = spread(examples, min(4 * MOST_TOKENS, 2 * ROWS_PER_PASS * tokens_per_row(examples)))
    began = time.perf_counter()
    predict(session.state.model, session.task, few, session.tokenizer, session.machine)
    return (time.perf_counter() - began) / int(count_tokens(few).sum()) * tokens_per_row(examples)
