"""From recipe to objects: the one place that knows both the recipe's words and the parts that carry them out."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alloytune.data.prepare import Dataset, prepare
from alloytune.data.rules import Rules
from alloytune.data.settings import DataSettings, SplitSettings
from alloytune.errors import InputError
from alloytune.expression import leaves_rest, parse
from alloytune.joint import constant_factors, find_parts
from alloytune.learning import Learning, encode_splits
from alloytune.machine import Machine, find_machine
from alloytune.models.adapters import Attachment
from alloytune.models.architecture import Architecture
from alloytune.models.combine import Combination
from alloytune.models.folder import read_folder
from alloytune.models.heads import MAIN
from alloytune.models.load import load_model, load_tokenizer, require_config, start_outputs, token_limit
from alloytune.models.methods import METHODS, Method
from alloytune.models.roles import Roles
from alloytune.models.source import locate
from alloytune.models.state import ModelState
from alloytune.models.weights import Weights, named_weights
from alloytune.pace import (
    in_training_form,
    layer_shares,
    make_stage_clip,
    make_stage_schedule,
    optimizer_settings,
    role_of,
)
from alloytune.rates import auto_rate
from alloytune.recipe.places import dotted
from alloytune.recipe.types.adapter import Attach
from alloytune.recipe.types.choosing import Combine, Scaled
from alloytune.recipe.types.ending import Patience, Until
from alloytune.recipe.types.recipe import Learner, Recipe, path_of
from alloytune.recipe.types.stage import Stage, retry_of
from alloytune.recipe.types.values import PRETRAINED, read_interval, read_multiplier
from alloytune.selected import Selected
from alloytune.selection import REHEARSAL, Chooser, resolve, select
from alloytune.tasks.abilities import FitsModel, StartsOutputs, Undivided, Varying
from alloytune.tasks.task import Batch, Example, Task, find_task
from alloytune.train.activations import Activations
from alloytune.train.batches import Updates
from alloytune.train.flops import flops_per_token
from alloytune.train.joint import Part
from alloytune.train.moving import Group, Moving, Role
from alloytune.train.stage import StagePlan

_ATTACHING = 2**31 + 1  # the place of attaching among a stage's seeds, which are numbered by attempt


@dataclass
class Session:
    """Everything that the stages of a run share. `recipe` changes where a rate that was left to `auto` is found."""

    recipe: Recipe
    source: str
    tokenizer: Any
    state: ModelState
    machine: Machine
    max_length: int | None
    learnings: dict[str, Learning]  # by the name of the head that they have in `state`
    activations: Activations = field(default_factory=Activations)  # what frozen layers gave

    @property
    def learning(self) -> Learning:
        """Give what is learned now."""
        return self.learnings[self.state.heads.current]

    @property
    def task(self) -> Task:
        """Give the task of now."""
        return self.learning.task

    @property
    def examples(self) -> Mapping[str, Sequence[Example]]:
        """Give its examples by split."""
        return self.learning.examples

    def change(self, **parts: Any) -> None:
        """Put something else in the place of parts of what is learned now, such as its examples."""
        self.learnings[self.state.heads.current] = replace(self.learning, **parts)

    def seed(self, *place: int) -> int:
        """Give the seed for a place in the run, such as a stage and an attempt."""
        return derive_seed(self.recipe.seed, *place)

    def pretrained_weights(self) -> Weights:
        """Load the model anew, and give its weights as they were before the first stage, in main memory."""
        model, _ = _load(self.task, self.source, self.tokenizer, self.recipe)
        return {name: weight.detach() for name, weight in named_weights(model).items()}


def build_data_settings(recipe: Recipe, place: str = "data") -> DataSettings:
    """Translate the recipe's `data`; `place` is where it stands."""
    data = recipe.data
    return DataSettings(
        train=_path(data.train),
        validation=_path(data.validation),
        test=_path(data.test),
        columns=recipe.columns,
        other_columns=tuple(form.required for form in recipe.words.forms),
        rules=build_rules(recipe),
        contradicts=recipe.words.contradicts,
        encoding=data.encoding,
        rows=data.rows,
        split=SplitSettings(data.split.validation, data.split.test, recipe.stratifies),
        repair=data.repair,
        near_duplicates=data.near_duplicates,
        seed=recipe.seed,
        place=place,
    )


def build_rules(recipe: Recipe, columns: Collection[str] | None = None) -> Rules:
    """Give what the recipe's task makes of rows; with these of its columns, all that are read where not given."""
    names = recipe.columns if columns is None else columns
    return find_task(recipe.task_name).rules(recipe.task_settings, names)


def prepare_others(recipe: Recipe) -> dict[str, Dataset]:
    """Read, clean and split the rows of stages and views that have their own; by what they learn."""
    return {
        name: prepare(build_data_settings(recipe.view(*learner), ".".join(map(str, (*path_of(learner), "data")))))
        for name, learner in recipe.learnings.items()
        if recipe.learners[learner].data is not None
    }


def build_architecture(recipe: Recipe) -> Architecture:
    """Translate the recipe's `architecture`."""
    wanted = recipe.architecture
    pooling = None if wanted.pooling == "native" else wanted.pooling
    return Architecture(wanted.layers, wanted.dropout, tuple(wanted.tokens), pooling)


def build_session(recipe: Recipe, dataset: Dataset, others: Mapping[str, Dataset] | None = None) -> Session:
    """Load model and tokenizer, put the task's head on, tokenize the splits.

    `others` are the rows of stages and views that have their own; they need not be there to look at the recipe's.
    """
    assert recipe.model is not None
    source = locate(recipe.model)
    machine = find_machine(recipe.precision)
    task = fit(find_task(recipe.task_name).learn(recipe.task_settings, dataset.train), source)
    architecture = build_architecture(recipe)
    tokenizer = load_tokenizer(source, architecture.tokens)
    model, fresh = _load(task, source, tokenizer, recipe)
    max_length = token_limit(model, tokenizer, recipe.max_length)
    learnings = {MAIN: encode_splits(task, dataset, tokenizer, max_length, "data")}
    state = ModelState(model, fresh, reshaped=architecture.changes)
    state.to(machine.device)
    session = Session(recipe, source, tokenizer, state, machine, max_length, learnings)
    for name, learner in recipe.learnings.items():
        _add_learning(
            session, name, learner, (others or {}).get(name) or _rows_around(learner, session, dataset, others)
        )
    return session


def _load(
    task: Task, source: str, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Load the model as the recipe changes it, its head as the task starts it; also name the fresh weights."""
    architecture = build_architecture(recipe)
    model, fresh = load_model(task.auto_class, source, tokenizer, recipe.seed, architecture, **task.config)
    if isinstance(task, StartsOutputs) and task.first_outputs:
        start_outputs(model, fresh, task.first_outputs)
    return model, fresh


def _rows_around(learner: Learner, session: Session, dataset: Dataset, others: Mapping[str, Dataset] | None) -> Dataset:
    """Give the rows that a learner without its own reads: a view those of its stage, if it has some."""
    of_stage = session.recipe.learning_of(learner[0]) if session.recipe.stages[learner[0]].data else ""
    return (others or {}).get(of_stage, dataset)


def _add_learning(session: Session, name: str, learner: Learner, dataset: Dataset) -> None:
    """Add what a stage or a view learns beside what the recipe does, with its head."""
    recipe, tokenizer = session.recipe, session.tokenizer
    view = recipe.view(*learner)
    task = fit(find_task(view.task_name).learn(view.task_settings, dataset.train), session.source)
    model, fresh = _load(task, session.source, tokenizer, recipe)
    where = f"{dotted(path_of(learner))}.data" if recipe.learners[learner].data else "data"
    session.learnings[name] = encode_splits(task, dataset, tokenizer, session.max_length, where)
    session.state.add_head(name, model, fresh)


def fit(task: Task, source: str) -> Task:
    """Let a task take from a model's folder what it says of it."""
    if not isinstance(task, FitsModel):
        return task
    require_config(source)
    return task.fitted(source)


def build_attachments(session: Session, number: int, chooser: Chooser | None = None) -> list[Attachment]:
    """Translate a stage's `attach`. `chooser` makes the choices of its selections."""
    stage = session.recipe.stages[number]
    if not stage.attaches:
        return []
    roles = session.state.roles()
    attachments = []
    for place, attach in enumerate(stage.attaches):
        (kind,) = attach.kinds
        where = f"{attached_at(stage, number, place)}.{kind}"
        settings = _method(attach, kind, where)
        names = resolve(attach.on, roles, f"{where}.on", chooser)
        own_seed = derive_seed(session.recipe.seed, number, _ATTACHING, place)
        # a rehearsal leaves to the rest all that may be left to it, the layers of what is chosen included
        stack = attach.stack or (chooser is REHEARSAL and leaves_rest(parse(attach.on)))
        attachments.append(Attachment(attach.called, settings, names, own_seed, stack))
    return attachments


def attached_at(stage: Stage, number: int, place: int) -> str:
    """Name one of a stage's adapters as its recipe does."""
    listed = isinstance(stage.attach, list)
    return f"stages[{number}].attach[{place}]" if listed else f"stages[{number}].attach"


def leaving(stage: Stage, verb: Literal["merge", "drop"], attached: Iterable[str]) -> list[str]:
    """Give those of the attached adapters that a stage merges or drops."""
    chosen = getattr(stage, verb)
    return [name for name in attached if chosen is True or chosen == name]


def build_moving(session: Session, number: int, chooser: Chooser | None = None) -> Moving:
    """Translate a stage's `train`, its rates and its optimizer, once its adapter is attached.

    Where weights take turns, it holds all that may ever move.
    `chooser` makes the choices of its selections, and knows the score that a rate is scaled by. Settings for weights
    that never move are refused; a choice may well leave them out, and has been rehearsed with all that it may choose.
    """
    stage = session.recipe.stages[number]
    if stage.train is None:
        return Moving(())
    where = f"stages[{number}]"
    roles = session.state.roles()
    selected = _selected(session, number, roles, chooser)
    own_rates = [
        (text, resolve(text, roles, f"{where}.rates.{text}", chooser), rate) for text, rate in stage.rates.items()
    ]
    is_sure = chooser in (None, REHEARSAL)
    for text, names, _ in own_rates:
        if is_sure and not names & selected.names:
            raise InputError(
                f"{where}.rates", f"nothing of {text!r} moves in this stage", "drop it, or add it to train"
            )
    starts = _auto_rates(session, roles, selected)
    shares = layer_shares(stage.layer_decay, roles)
    if is_sure and stage.layer_decay != 1 and selected.names.isdisjoint(shares):
        raise InputError(f"{where}.layer_decay", "no layer moves in this stage", "drop it, or add layers to train")
    common = stage.rate.largest if isinstance(stage.rate, Scaled) else stage.rate
    factors = _factors(stage, roles, selected, chooser)
    pluses = session.state.pluses()
    parts = find_parts(stage, where, roles, selected.names, chooser)
    weights = constant_factors(stage)
    undecayed = roles.members.get("norm", frozenset()) | roles.members.get("bias", frozenset())
    groups: dict[tuple[float, float, Role, float | None, Part | None], list[str]] = {}
    for name in (name for name in roles.shapes if name in selected.names):
        own = next((rate for _, names, rate in own_rates if name in names), None)
        given = common if own is None else own
        start, rate = (starts[name], starts[name]) if given == "auto" else (None, given)
        rate *= pluses.get(name, 1.0)
        rate *= factors.get(name, 1.0) * shares.get(name, 1.0) if own is None else 1.0
        part = parts.get(name)
        rate *= weights.get(part, 1.0) if part else 1.0
        decay = 0.0 if name in undecayed or len(roles.shapes[name]) < 2 else stage.weight_decay
        groups.setdefault((rate, decay, role_of(name, roles), start, part), []).append(name)
    made = tuple(Group(tuple(names), *shared) for shared, names in groups.items())
    return Moving(made, optimizer_settings(stage, where, made, roles, is_sure=is_sure), selected.masks)


def _selected(session: Session, number: int, roles: Roles, chooser: Chooser | None) -> Selected:
    """Give all that may move in a stage; raises InputError where what takes turns moves anyhow."""
    always, chosen = select_turn(session, number, roles, chooser, REHEARSAL)
    if chosen and not chosen - always:
        raise InputError(
            f"stages[{number}].train.rotate.choose",
            "all that may be chosen moves in every turn anyhow",
            "take it out of `always`, or choose `of` something else",
        )
    return always | chosen


def select_turn(
    session: Session, number: int, roles: Roles, chooser: Chooser | None, of_turn: Chooser
) -> tuple[Selected, Selected]:
    """Give what moves in every turn of a stage, and what `of_turn` chooses to move beside it in one turn."""
    always = chosen = Selected(frozenset())
    for key, text in session.recipe.stages[number].trains.items():
        where = ".".join((f"stages[{number}]", *key))
        if key[-1] == "choose":
            chosen = select(text, roles, where, of_turn)
        else:
            always = select(text, roles, where, chooser)
    return always, chosen


def selections(stage: Stage, number: int) -> dict[str, str]:
    """Give the selections of a stage by their place in the recipe."""
    where = f"stages[{number}]"
    found = {".".join((where, *key)): text for key, text in stage.trains.items()}
    found |= {f"{where}.rates.{text}": text for text in stage.rates}
    if stage.joint and stage.joint.of:
        found[f"{where}.joint.of"] = stage.joint.of
    if stage.combine and stage.combine.of:
        found[f"{where}.combine.of"] = stage.combine.of
    for place, attach in enumerate(stage.attaches):
        found[f"{attached_at(stage, number, place)}.{attach.kinds[0]}.on"] = attach.on
    return found


def scale(stage: Stage) -> str | None:
    """Give the score that a stage's rate is scaled by, if any."""
    return stage.rate.scale if isinstance(stage.rate, Scaled) else None


def _factors(stage: Stage, roles: Roles, selected: Selected, chooser: Chooser | None) -> dict[str, float]:
    """Give what the rate of each pretrained tensor is multiplied with: its score / the largest of those that move.

    The head and adapters are not compared with pretrained weights (a fresh head leads any such list) and keep the whole
    rate, as does a tensor that has no score.
    """
    score = scale(stage)
    if score is None or chooser is None:
        return {}
    fresh = roles.members.get("head", frozenset()) | roles.members.get("adapter", frozenset())
    found = {name: value for name, value in chooser.scores(score).items() if name in selected.names - fresh}
    largest = max(found.values(), default=0.0)
    return {name: value / largest for name, value in found.items()} if largest > 0 else {}


def _auto_rates(session: Session, roles: Roles, selected: Selected) -> dict[str, float]:
    """Give the starting rate of every weight that moves; the head goes with what moves beside it."""
    adapter, head = (roles.members.get(role, frozenset()) for role in ("adapter", "head"))
    body = frozenset[str]().union(*roles.stacks.get("layers", ()))
    num_body = sum(prod(roles.shapes[name]) for name in body)
    pretrained = selected.names - adapter - head
    num_moved = sum(count for name, count in selected.counts(roles.shapes).items() if name in pretrained & body)
    again = bool(pretrained & session.state.touched)
    of_pretrained = auto_rate("full" if 2 * num_moved >= num_body else "partial", num_body, again=again)
    of_adapter = auto_rate("adapter", num_body, again=session.state.base_moved)
    beside = of_pretrained if pretrained else of_adapter if selected.names & adapter else auto_rate("head", num_body)
    return {
        name: of_adapter if name in adapter else beside if name in head else of_pretrained for name in selected.names
    }


def build_updates(session: Session, number: int, attempt: int) -> Updates:
    """Make the series of updates of a stage."""
    updates = _updates_of(session, session.learning, derive_seed(session.recipe.seed, number, attempt))
    names = dict.fromkeys(session.recipe.beside(number).values())
    beside = {
        name: _updates_of(session, session.learnings[name], derive_seed(session.recipe.seed, number, attempt, place))
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
        seed=derive_seed(recipe.seed, number, attempt),
        schedule=make_stage_schedule(stage),
        clip=make_stage_clip(stage),
        max_updates=_max_updates(until, updates_per_epoch),
        max_seconds=until.minutes * 60 if until.minutes else None,
        patience=until.patience.evaluations if isinstance(until.patience, Patience) else until.patience,
        evaluate_every=in_updates(stage.evaluate, updates_per_epoch),
        keep=stage.keep,
        metric=metric,
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


def build_combination(session: Session, number: int) -> Combination | None:
    """Translate a stage's `combine` into what is done after its training; None where nothing is."""
    combine = session.recipe.stages[number].combine
    if combine is None or combine.how == "running-average":
        return None
    start, *others = [PRETRAINED, *combine.with_] if combine.how == "sum-of-changes" else combine.with_
    chosen: Literal["fixed", "grid", "greedy"] = "fixed"
    if combine.how == "greedy-soup":
        chosen = "greedy"
    elif combine.how in ("interpolate", "sum-of-changes") and combine.weight in (None, "validate"):
        chosen = "grid"
    return Combination(start, tuple(others), _coefficients(combine, len(others)), chosen)


def build_combined(session: Session, number: int, chooser: Chooser | None = None) -> frozenset[str] | None:
    """Translate the `of` of a stage's `combine`; None where it names no weights. `chooser` makes its choices."""
    combine = session.recipe.stages[number].combine
    if combine is None or combine.of is None:
        return None
    return resolve(combine.of, session.state.roles(), f"stages[{number}].combine.of", chooser)


def _coefficients(combine: Combine, num_others: int) -> tuple[float, ...]:
    """Give the fixed coefficients, of no account where they are chosen."""
    if combine.how == "average":
        return (1 / (num_others + 1),) * num_others
    if isinstance(combine.weight, list):
        return tuple(combine.weight)
    return (combine.weight if isinstance(combine.weight, float | int) else 1.0,) * num_others


def _average_share(stage: Stage) -> Callable[[int], float] | None:
    if stage.combine is None or stage.combine.how != "running-average":
        return None
    weight = stage.combine.weight
    return (lambda number: 1 / number) if weight is None else (lambda number: float(weight))  # type: ignore[arg-type]


def _tokens_for(flops: float, session: Session, number: int, updates: Updates) -> float:
    """Give how many tokens can be read for so many operations, by the cost of the stage's first update."""
    first = next(updates.after(0))
    with in_training_form(session, number):
        return flops / flops_per_token(session.state.model, first, session.task.summed_loss, session.machine)


def _enough(score: float | Mapping[str, float] | None, metric: str) -> dict[str, float]:
    if score is None:
        return {}
    return dict(score) if isinstance(score, Mapping) else {metric: score}


def retries(stage: Stage) -> tuple[int, float]:
    """Give how often a stage may be tried again, and what its rates are multiplied with each time."""
    retry = retry_of(stage)
    return (0, 1.0) if retry is None else (retry.times, read_multiplier(retry.rate))


def derive_seed(seed: int, *place: int) -> int:
    """Give a seed for a place in the run, such as a stage and an attempt; (1,) and (1, 0) are two places."""
    return int(np.random.SeedSequence([seed, len(place), *place]).generate_state(1, np.uint32)[0])


def _method(attach: Attach, kind: str, where: str) -> Method:
    """Translate the settings of an adapter: the recipe's words for a kind are its fields."""
    if attach.folder is not None:
        return read_folder(attach.folder, where)
    return METHODS[kind](**getattr(attach, kind).model_dump(exclude={"on"}))


def in_updates(interval: str, updates_per_epoch: int) -> int:
    """Translate an interval; at least one update."""
    amount, unit = read_interval(interval)
    return int(amount) if unit == "update" else max(1, round(amount * updates_per_epoch))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
