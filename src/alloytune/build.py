"""From recipe to objects: the one place that knows both the recipe's words and the parts that carry them out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from alloytune.data.prepare import Dataset
from alloytune.data.settings import DataSettings, SplitSettings
from alloytune.errors import InputError
from alloytune.machine import Machine, find_machine
from alloytune.models.adapters import AdapterSettings, BottleneckSettings, LoraSettings
from alloytune.models.load import load_model, load_tokenizer, token_limit
from alloytune.models.roles import Roles
from alloytune.models.source import locate
from alloytune.models.state import Attachment, ModelState
from alloytune.rates import auto_rate
from alloytune.recipe.types import Attach, Recipe, Stage, read_interval
from alloytune.selection import resolve
from alloytune.tasks.classification import Classification
from alloytune.tasks.task import Example, Task
from alloytune.train.batches import Updates
from alloytune.train.moving import Group, Moving
from alloytune.train.schedule import make_schedule
from alloytune.train.stage import StagePlan


@dataclass(frozen=True)
class Session:
    """Everything that the stages of a run share."""

    recipe: Recipe
    source: str
    task: Task
    tokenizer: Any
    state: ModelState
    machine: Machine
    examples: Mapping[str, list[Example]]  # by split
    num_cut: Mapping[str, int]  # rows by split that lost tokens to the length limit
    max_length: int | None


def build_data_settings(recipe: Recipe) -> DataSettings:
    """Translate the recipe's `data`."""
    data = recipe.data
    return DataSettings(
        train=_path(data.train),
        validation=_path(data.validation),
        test=_path(data.test),
        text=data.text,
        text_pair=data.text_pair,
        label=data.label,
        encoding=data.encoding,
        rows=data.rows,
        split=SplitSettings(data.split.validation, data.split.test, bool(data.split.stratify)),
        repair=data.repair,
        near_duplicates=data.near_duplicates,
        seed=recipe.seed,
    )


def build_session(recipe: Recipe, dataset: Dataset) -> Session:
    """Load model and tokenizer, put the task's head on, tokenize the splits."""
    assert recipe.model is not None
    source = locate(recipe.model)
    machine = find_machine(recipe.precision)
    task = Classification(dataset.labels)
    tokenizer = load_tokenizer(source)
    model, fresh = load_model(task.auto_class, source, tokenizer, recipe.seed, **task.config)
    max_length = token_limit(model, tokenizer, recipe.max_length)
    tables = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    encoded = {split: task.encode(table, tokenizer, max_length) for split, table in tables.items()}
    state = ModelState(model, fresh)
    state.to(machine.device)
    return Session(
        recipe=recipe,
        source=source,
        task=task,
        tokenizer=tokenizer,
        state=state,
        machine=machine,
        examples={split: examples for split, (examples, _) in encoded.items()},
        num_cut={split: cut for split, (_, cut) in encoded.items()},
        max_length=max_length,
    )


def build_attachment(session: Session, number: int) -> Attachment | None:
    """Translate a stage's `attach`; None where it adds nothing."""
    stage = session.recipe.stages[number]
    if stage.attach is None:
        return None
    settings, on = _adapter(stage.attach)
    names = resolve(on, session.state.roles(), f"stages[{number}].attach.{settings.kind}.on")
    return Attachment(settings, names, derive_seed(session.recipe.seed, number))


def build_moving(session: Session, number: int) -> Moving:
    """Translate a stage's `train`, `rate` and `rates`, once its adapter is attached."""
    stage = session.recipe.stages[number]
    where = f"stages[{number}]"
    roles = session.state.roles()
    selected = resolve(stage.train, roles, f"{where}.train")
    own_rates = [(text, resolve(text, roles, f"{where}.rates.{text}"), rate) for text, rate in stage.rates.items()]
    for text, names, _ in own_rates:
        if not names & selected:
            raise InputError(
                f"{where}.rates", f"nothing of {text!r} moves in this stage", "drop it, or add it to train"
            )
    starts = _auto_rates(session, roles, selected)
    undecayed = roles.members.get("norm", frozenset()) | roles.members.get("bias", frozenset())
    groups: dict[tuple[float, float], list[str]] = {}
    for name in (name for name in roles.shapes if name in selected):
        given = next((rate for _, names, rate in own_rates if name in names), stage.rate)
        rate = starts[name] if given == "auto" else given
        decay = 0.0 if name in undecayed or len(roles.shapes[name]) < 2 else stage.weight_decay
        groups.setdefault((rate, decay), []).append(name)
    return Moving(tuple(Group(tuple(names), rate, decay) for (rate, decay), names in groups.items()))


def _auto_rates(session: Session, roles: Roles, selected: frozenset[str]) -> dict[str, float]:
    """Give the starting rate of every weight that moves; the head goes with what moves beside it."""
    adapter, head = (roles.members.get(role, frozenset()) for role in ("adapter", "head"))
    body = frozenset[str]().union(*roles.stacks.get("layers", ()))
    sizes = {name: prod(shape) for name, shape in roles.shapes.items()}
    num_body = sum(sizes[name] for name in body)
    pretrained = selected - adapter - head
    num_moved = sum(sizes[name] for name in pretrained & body)
    again = bool(pretrained & session.state.touched)
    of_pretrained = auto_rate("full" if 2 * num_moved >= num_body else "partial", num_body, again=again)
    of_adapter = auto_rate("adapter", num_body, again=session.state.base_moved)
    beside = of_pretrained if pretrained else of_adapter if selected & adapter else auto_rate("head", num_body)
    return {name: of_adapter if name in adapter else beside if name in head else of_pretrained for name in selected}


def build_updates(session: Session, number: int, attempt: int) -> Updates:
    """Make the series of updates of a stage."""
    recipe = session.recipe
    return Updates(
        session.examples["train"],
        recipe.batch,
        recipe.micro_batch or recipe.batch,
        derive_seed(recipe.seed, number, attempt),
        partial(session.task.collate, tokenizer=session.tokenizer),
    )


def build_plan(recipe: Recipe, number: int, attempt: int, updates_per_epoch: int) -> StagePlan:
    """Translate a stage's `until`, `schedule` and what goes with them into updates and seconds."""
    stage = recipe.stages[number]
    until = stage.until
    limits = [until.updates] if until.updates else []
    if until.epochs:
        limits.append(math.ceil(until.epochs * updates_per_epoch))
    amount, unit = read_interval(recipe.checkpoint)
    return StagePlan(
        seed=derive_seed(recipe.seed, number, attempt),
        schedule=make_schedule(stage.schedule, stage.warmup),
        clip=stage.clip,
        max_updates=min(limits) if limits else None,
        max_seconds=until.minutes * 60 if until.minutes else None,
        patience=until.patience,
        evaluate_every=_in_updates(stage.evaluate, updates_per_epoch),
        keep=stage.keep,
        metric=recipe.metric,
        checkpoint_updates=None if unit == "minute" else _in_updates(recipe.checkpoint, updates_per_epoch),
        checkpoint_seconds=amount * 60 if unit == "minute" else None,
    )


def retries(stage: Stage) -> tuple[int, float]:
    """Give how often a stage may be tried again, and what its rates are multiplied with each time."""
    if stage.otherwise == "retry":
        return 1, 0.3
    if isinstance(stage.otherwise, str):
        return 0, 1.0
    return stage.otherwise.retry.times, stage.otherwise.retry.factor


def derive_seed(seed: int, *place: int) -> int:
    """Give a seed for a place in the run, such as a stage and an attempt."""
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint32)[0])


def _adapter(attach: Attach) -> tuple[AdapterSettings, str]:
    if attach.lora:
        lora = attach.lora
        return LoraSettings(lora.rank, lora.alpha or 2 * lora.rank, lora.dropout), lora.on
    assert attach.bottleneck is not None
    thin = attach.bottleneck
    return BottleneckSettings(thin.reduction, thin.activation, thin.placement, thin.dropout), thin.on


def _in_updates(interval: str, updates_per_epoch: int) -> int:
    amount, unit = read_interval(interval)
    return int(amount) if unit == "update" else max(1, round(amount * updates_per_epoch))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
