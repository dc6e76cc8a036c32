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
from alloytune.models.heads import MAIN
from alloytune.models.weights import named_weights
from alloytune.recipe.read import recipe_from
from alloytune.record.folder import RunFolder
from alloytune.tasks.task import Scores
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

    def __init__(self, session: Session, folder: RunFolder, stop: int | None, *, is_new: bool) -> None:
        self.session = session
        self.folder = folder
        self.stop = stop
        self.updates = 0
        self.begun: dict[str, Weights] = {}
        self.moves: dict[str, Moving] = {}
        self.plans: dict[str, StagePlan] = {}
        self.last = self.weights()
        self.after: dict[str, Weights] = {"(pretrained)": self.last} if is_new else {}
        self.results: dict[str, Mapping[str, Any]] = {}

    def weights(self) -> Weights:
        """Copy what every head and the body have, by stored names."""
        heads = self.session.state.heads
        names = {heads.stored_name(name) for name in named_weights(self.session.state.model)}
        for key in (MAIN, *self.session.recipe.learnings):
            start = f"{key}:" if key else ""
            names |= {f"{start}{name}" for name in named_weights(heads.model_of(key))}
        return heads.copy(names)

    def on_stage(self, number: int, stage: Any, moving: Moving, plan: StagePlan, progress: Progress) -> None:
        self.stage, self.moving = self.folder.stage(number, stage.name), moving
        self.moves[stage.name], self.plans[stage.name] = moving, plan
        self.begun[stage.name] = self.last = self.weights()
        self.turn = None

    def on_step(self, step: Step, progress: Progress) -> None:
        self.updates += 1
        self.look()
        if self.updates == self.stop:
            raise Stopped

    def on_scores(self, scores: Scores, progress: Progress) -> None:
        self.look()

    def look(self) -> None:
        """See that since its turn began nothing has moved but what the record says of that turn."""
        turn, now = self.stage.rows("turns")[-1], self.weights()
        if turn != self.turn:
            self.turn, self.before = turn, self.last
        assert_still(self.before, now, self.may_move(turn["moves"]))
        self.last = now

    def may_move(self, counts: Mapping[str, int]) -> dict[str, tuple[int, Tensor | bool]]:
        """Give by stored name how many elements of a weight move in a turn, and which ever do."""
        named = self.session.state.heads.stored_name
        return {
            named(name): (count, self.moving.masks.get(name, name in self.moving.names))
            for name, count in counts.items()
        }

    def on_stage_end(self, number: int, result: Mapping[str, Any]) -> None:
        name, now = result["name"], self.weights()
        if result["decision"] != "kept" and self.after:
            assert_same(now, list(self.after.values())[-1])
        self.after[name], self.results[name], self.last = now, result, now


def assert_still(before: Weights, after: Weights, may_move: Mapping[str, tuple[int, Tensor | bool]]) -> None:
    """What does not move keeps its bits, single elements that rest included."""
    assert before.keys() == after.keys()
    for name, weight in before.items():
        count, moving = may_move.get(name, (0, False))
        moved = weight != after[name]
        assert int(moved.sum()) <= count, name
        assert not (moved & ~torch.as_tensor(moving)).any(), name


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
    witness = Witness(session, RunFolder(folder), stop, is_new=not folder.exists())
    folder.mkdir(exist_ok=True)
    with suppress(Stopped):
        run._train(RunFolder(folder), session, witness)
    return witness
