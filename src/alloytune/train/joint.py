"""A joint objective: the weights of full, partial and adapter training over time, and what each of them moves."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from alloytune.errors import InputError
from alloytune.selected import Selected
from alloytune.tasks.task import Batch
from alloytune.train.moving import Part
from alloytune.train.optimizers import Optimizer
from alloytune.train.turns import Turn

View = Literal["full", "partial", "adapter"]
Losses = dict[View, Tensor]

# The views that a part of the weights belongs to; the part `full` is the rest of the base.
VIEWS_OF: Mapping[Part, tuple[View, ...]] = {
    "full": ("full",),
    "partial": ("full", "partial"),
    "adapter": ("adapter",),
    "head": ("full", "partial", "adapter"),
}


# Before a view, in what is remembered.
_WEIGHT = "weight of "
_NOW = "weight now of "


@dataclass(frozen=True)
class Piece:
    """A piece of a weight's course, from `first` to `last`; it holds while less than `until` lies behind."""

    first: float
    last: float
    shape: Literal["linear", "cosine"]
    until: float


@dataclass(frozen=True)
class WeightCourse:
    """A weight over a stage; its pieces end at shares of the stage, or at numbers of updates."""

    pieces: tuple[Piece, ...]
    by: Literal["share", "update"] = "share"

    @classmethod
    def constant(cls, weight: float) -> "WeightCourse":
        """Give the course of a weight that stays."""
        return cls((Piece(weight, weight, "linear", math.inf),))

    @property
    def is_constant(self) -> bool:
        """Tell whether it is one value throughout."""
        return len(self.pieces) == 1 and self.pieces[0].first == self.pieces[0].last

    def piece(self, update: int, share: float) -> int:
        """Give the piece that an update belongs to; `share` of the stage lies before it."""
        behind = update - 1 if self.by == "update" else share
        return next((n for n, piece in enumerate(self.pieces) if behind < piece.until - 1e-9), len(self.pieces) - 1)

    def at(self, update: int, share: float) -> float:
        """Give the weight of an update; a slope is read in updates at the update's middle, in shares at its start."""
        number = self.piece(update, share)
        piece = self.pieces[number]
        if piece.first == piece.last:
            return piece.first
        begin = self.pieces[number - 1].until if number else 0.0
        end = min(piece.until, 1.0) if self.by == "share" else piece.until
        behind = update - 0.5 if self.by == "update" else share
        way = min(max((behind - begin) / (end - begin), 0.0), 1.0)
        risen = way if piece.shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * way))
        return piece.first + (piece.last - piece.first) * risen

    def begins(self, num_updates: int | None) -> list[int]:
        """Give the updates in which its pieces begin, in a stage of so many updates, where that is known."""
        ends = [piece.until for piece in self.pieces[:-1]]
        if self.by == "share":
            ends = [until * num_updates for until in ends] if num_updates else []
        return [1, *(math.ceil(end - 1e-6) + 1 for end in ends)]

    def rests(self, update: int, share: float) -> bool:
        """Tell whether the weight is 0 for all of the piece that an update belongs to."""
        piece = self.pieces[self.piece(update, share)]
        return piece.first == piece.last == 0.0


class Balance(Protocol):
    """Finds the weights of the next update by what is seen in each."""

    def note(self, losses: Losses, batch: Batch) -> None:
        """Take in the losses of views, summed over the targets of a batch."""

    def around(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Go around the step that ends an update."""


class Blend:
    """The course of a stage whose weights say how much each part counts; a part that counts for nothing rests.

    `parts` tells of every weight that moves which part it is of, `heads` of those of heads which views they belong to,
    where these are not all. A `balance` finds weights. `where` names the objective in errors.
    """

    def __init__(
        self,
        selected: Selected,
        parts: Mapping[str, Part],
        weights: Mapping[View, WeightCourse],
        heads: Mapping[str, Collection[View]] | None = None,
        where: str = "joint",
    ) -> None:
        self.memory: dict[str, Tensor] = {}
        self.parts = parts
        self.weights = weights
        self.heads = heads or {}
        self.where = where
        self.balance: Balance | None = None
        self._selected = selected
        self._resting: frozenset[View] = frozenset()

    def number(self, update: int, share: float) -> int:
        """Count the pieces of all weights that have ended before the update; InputError where all of them rest."""
        now = {view: course.at(update, share) for view, course in self.weights.items()} | self.recall(_WEIGHT)
        self.remember(_NOW, now)
        self._resting = frozenset(view for view, course in self.weights.items() if course.rests(update, share))
        if len(self._resting) == len(self.weights):
            what = f"from update {update} on, all weights are 0 and nothing would move"
            raise InputError(self.where, what, "let one weight begin before the others end")
        return sum(course.piece(update, share) for course in self.weights.values())

    def turn(self, number: int) -> Turn:
        """Let move what belongs to a view that counts."""
        return Turn(number, self._moving(self.weights.keys() - self._resting))

    def give(self, weights: Mapping[View, float]) -> None:
        """Let views have these weights from the next update on, instead of their course."""
        self.remember(_WEIGHT, weights)

    @property
    def now(self) -> dict[View, float]:
        """Give the weights of the last update; after a resume they are known before the next."""
        return self.recall(_NOW)

    def remember(self, what: str, values: Mapping[View, float]) -> None:
        """Keep a number for each of these views, through a resume as well."""
        self.memory |= {f"{what}{view}": torch.tensor(value, dtype=torch.float64) for view, value in values.items()}

    def recall(self, what: str) -> dict[View, float]:
        """Give the numbers that are kept under this word."""
        return {view: float(self.memory[f"{what}{view}"]) for view in self.weights if f"{what}{view}" in self.memory}

    def factor(self, part: Part) -> float:
        """Give the sum of the weights of the views that a part belongs to; the head has 1."""
        return 1.0 if part == "head" else sum(self.now[view] for view in VIEWS_OF[part] if view in self.now)

    def scheduled(self) -> frozenset[Part]:
        """Give the parts whose factor changes over the stage."""
        changing = {view for view, course in self.weights.items() if not course.is_constant}
        return frozenset(part for part, views in VIEWS_OF.items() if part != "head" and changing & set(views))

    def views_of(self, name: str) -> Collection[View]:
        """Give the views that a weight belongs to."""
        return self.heads.get(name, VIEWS_OF[self.parts[name]])

    def _moving(self, views: Collection[View]) -> Selected:
        """Select what belongs to one of these views."""
        return self._selected & Selected(frozenset(n for n in self.parts if set(views) & set(self.views_of(n))))


class Draws(Blend):
    """The course of a stage whose updates each belong to one view, drawn with the weights as probabilities.

    A draw holds for `every` updates. What is of no part of the drawn view rests; the head moves in all.
    """

    def __init__(
        self,
        selected: Selected,
        parts: Mapping[str, Part],
        weights: Mapping[View, WeightCourse],
        every: int,
        seed: int,
        where: str = "joint",
    ) -> None:
        super().__init__(selected, parts, weights, where=where)
        self.every = every
        self._seed = seed

    def number(self, update: int, share: float) -> int:
        """Count whole draws before the update."""
        super().number(update, share)
        return (update - 1) // self.every

    def turn(self, number: int) -> Turn:
        """Draw a view by the weights of now, evenly where all are about to rise, and let move what belongs to it."""
        views, weights = zip(*self.now.items(), strict=True)
        if not any(weights):
            weights = tuple(float(view not in self._resting) for view in views)
        bounds = np.cumsum(weights) / sum(weights)
        drawn: View = views[int(np.searchsorted(bounds, np.random.default_rng([self._seed, number]).random(), "right"))]
        return Turn(number, self._moving([drawn]), {"view": drawn})


@contextmanager
def weighted(blend: Blend, optimizer: Optimizer) -> Iterator[None]:
    """Multiply the rates of an update with the factors that change over the stage; the others are in the rates."""
    scheduled = blend.scheduled()
    for group in optimizer.param_groups:
        if group["part"] in scheduled:
            group["lr"] = group["lr"] * blend.factor(group["part"])
    yield
