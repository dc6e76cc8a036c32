"""Recipes carried out in this process, watched at every update, stopped where asked for."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiny
from alloytune import run
from alloytune.build.session import Session, build_session
from alloytune.data.prepare import Dataset, prepare
from alloytune.data.settings import SplitSettings
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.read import recipe_from
from alloytune.record.folder import RunFolder
from alloytune.train.loop import Step
from alloytune.train.moving import Moving
from alloytune.train.stage import Progress, StagePlan
from alloytune.watch import Watcher
from data.example_tables import labelled

Weights = dict[str, Tensor]


class Stopped(Exception):  # noqa: N818 - stands for a kill
    pass


class Witness(Watcher):
    """Sees that only what moves moves, at every update, and keeps each stage's weights; may stop at the nth update."""

    def __init__(self, session: Session, stop: int | None, *, is_new: bool) -> None:
        self.session = session
        self.stop = stop
        self.updates = 0
        self.stage = ""
        self.begun: dict[str, Weights] = {}
        self.moves: dict[str, Moving] = {}
        self.plans: dict[str, StagePlan] = {}
        self.after: dict[str, Weights] = {"(pretrained)": self.weights()} if is_new else {}
        self.results: dict[str, Mapping[str, Any]] = {}

    def weights(self) -> Weights:
        model = self.session.state.model
        return copy_weights(model, named_weights(model))

    def on_stage(self, number: int, stage: Any, moving: Moving, plan: StagePlan, progress: Progress) -> None:
        self.stage = stage.name
        self.plans[self.stage] = plan
        self.begun[self.stage], self.moves[self.stage] = self.weights(), moving

    def on_step(self, step: Step, progress: Progress) -> None:
        self.updates += 1
        assert_still(self.begun[self.stage], self.weights(), self.moves[self.stage])
        if self.updates == self.stop:
            raise Stopped

    def on_stage_end(self, number: int, result: Mapping[str, Any]) -> None:
        name, now = result["name"], self.weights()
        if result["decision"] != "kept" and self.after:
            assert_same(now, list(self.after.values())[-1])
        self.after[name], self.results[name] = now, result


def assert_still(before: Weights, after: Weights, moving: Moving) -> None:
    """What does not move keeps its bits, single elements that a mask leaves out included."""
    assert before.keys() == after.keys()
    for name, weight in before.items():
        frozen = ~moving.masks[name] if name in moving.masks else torch.full(weight.shape, name not in moving.names)
        assert torch.equal(weight[frozen], after[name][frozen]), name


def assert_same(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@cache
def dataset() -> Dataset:
    return prepare(labelled(None, split=SplitSettings(0.3, 0.1)), tiny.make_table(60))


def begin(recipe: Mapping[str, Any], model: Path) -> Session:
    """Load and rehearse; raises InputError for what cannot be carried out."""
    read = recipe_from({"model": str(model), **recipe})
    session = build_session(read, dataset())
    run.rehearse(session)
    return session


def carry_out(session: Session, folder: Path, stop: int | None = None) -> Witness:
    """Carry out the stages, or go on with them; `stop` is the update at which to stop short."""
    witness = Witness(session, stop, is_new=not folder.exists())
    folder.mkdir(exist_ok=True)
    with suppress(Stopped):
        run._train(RunFolder(folder), session, witness)
    return witness
