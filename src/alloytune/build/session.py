"""From a recipe to what the stages of a run share: model, tokenizer, tasks and their examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alloytune.data.prepare import Dataset
from alloytune.learning import Learning, encode_splits
from alloytune.machine import Machine, find_machine
from alloytune.models.architecture import Architecture
from alloytune.models.heads import MAIN
from alloytune.models.load import load_model, load_tokenizer, require_config, start_outputs, token_limit
from alloytune.models.source import locate
from alloytune.models.state import ModelState
from alloytune.models.weights import Weights, named_weights
from alloytune.recipe.places import dotted
from alloytune.recipe.types.recipe import Learner, Recipe, path_of
from alloytune.tasks.abilities import FitsModel, StartsOutputs
from alloytune.tasks.task import Example, Task, find_task
from alloytune.train.activations import Activations
from alloytune.trying import evaluating


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


class Place(IntEnum):
    """What draws random numbers of its own in a stage, beside its attempts, which are numbered from 0."""

    MEASURING = 2**31
    ATTACHING = 2**31 + 1
    SEARCHING = 2**31 + 2
    DRAWING_VIEWS = 2**31 + 3
    REINITIALISING = 2**31 + 4


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
    if recipe.precision == "auto" and not _computes(model, learnings[MAIN], tokenizer, machine):
        machine = machine.exact()
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


@torch.no_grad()
def _computes(model: PreTrainedModel, learning: Learning, tokenizer: PreTrainedTokenizerBase, machine: Machine) -> bool:
    """Try a model on one row in a machine's precision; some, as DeBERTa of 2020, do not compute in bfloat16."""
    batch = learning.task.collate(learning.examples["train"][:1], tokenizer)
    try:
        with evaluating(model), machine.autocast():
            learning.task.outputs(model, batch.to(machine.device))
    except RuntimeError:
        return False
    return True


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


def derive_seed(seed: int, *place: int) -> int:
    """Give a seed for a place in the run, such as a stage and an attempt; (1,) and (1, 0) are two places."""
    return int(np.random.SeedSequence([seed, len(place), *place]).generate_state(1, np.uint32)[0])
