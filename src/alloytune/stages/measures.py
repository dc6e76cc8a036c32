"""What a stage measures when it begins, and the choices that follow from it."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alloytune.build.plan import build_updates
from alloytune.build.selections import scale, selections
from alloytune.build.session import Place, Session, fit
from alloytune.errors import InputError
from alloytune.expression import MATRIX_SCORES, Choice, choices_in, parse, show
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.roles import Roles
from alloytune.models.source import locate
from alloytune.models.state import ModelState
from alloytune.models.weights import Weights, named_weights
from alloytune.selected import Selected, Shapes
from alloytune.selection import candidates, nearest, select
from alloytune.tasks.task import find_task
from alloytune.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from alloytune.train.scores import (
    OF_CHANGE,
    OF_GRADIENTS,
    Facts,
    Gradient,
    element_scores,
    largest,
    measure_gradients,
    tensor_score,
)


@dataclass(frozen=True)
class Measures:
    """Scores by tensor, element masks by choice, and a seed for what is left to chance.

    What is drawn depends on the seed, the turn and the words of the choice: the same words mean the same weights in
    all of a stage's selections. `turn` counts the draws of one stage: 0 unless the choice is made again and again.
    """

    seed: int
    tensors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # score -> tensor -> value
    masks: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # choice -> tensor -> mask
    turn: int = 0

    def scores(self, score: str) -> Mapping[str, float]:
        """Give a score by tensor."""
        return self.tensors[score]

    def choose(self, choice: Choice, units: Sequence[frozenset[str]], shapes: Shapes) -> Selected:
        """Choose among layers or tensors, or among the elements of these tensors."""
        if choice.by == "element":
            masks = self.masks[show(choice)] if choice.score else self._drawn(choice, units, shapes)
            return Selected.parts(masks)
        ordered = self._ordered(choice, units, shapes)
        weighed = [1 if choice.by == "layer" else _size(unit, shapes) for unit in ordered]
        return Selected(frozenset[str]().union(*ordered[: nearest(weighed, choice.amount)]))

    def _ordered(self, choice: Choice, units: Sequence[frozenset[str]], shapes: Shapes) -> list[frozenset[str]]:
        match choice.how:
            case "random":
                return self._random(choice).sample(units, len(units))
            case "cycle":
                width = nearest([1] * len(units), choice.amount)
                first = self.turn * width % len(units)
                return [*units[first:], *units[:first]]
        scores = self.scores(choice.score)
        sign = -1 if choice.how == "top" else 1
        return sorted(units, key=lambda unit: sign * _mean(scores, unit, shapes))

    def _drawn(self, choice: Choice, units: Sequence[frozenset[str]], shapes: Shapes) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self._random(choice).getrandbits(63))
        names = [name for unit in units for name in unit]
        return largest({name: torch.rand(shapes[name], generator=generator) for name in names}, choice.amount)

    def _random(self, choice: Choice) -> random.Random:
        return random.Random(f"{self.seed} {self.turn} {show(choice)}")

    def save(self, folder: Path) -> None:
        """Write what was measured: `state.json` with the scores by tensor, and the masks as safetensors."""
        masks = {f"{choice}|{name}": mask for choice, by_name in self.masks.items() for name, mask in by_name.items()}
        tensors = {"masks": masks} if masks else {}
        state = {"seed": self.seed, "scores": {score: dict(found) for score, found in self.tensors.items()}}
        save_checkpoint(folder, Checkpoint(tensors, state))

    @classmethod
    def load(cls, folder: Path) -> "Measures | None":
        """Read what `save` wrote; None where it is absent or damaged."""
        saved = load_checkpoint(folder)
        if saved is None:
            return None
        masks: dict[str, dict[str, Tensor]] = {}
        for key, mask in saved.tensors.get("masks", {}).items():
            choice, _, name = key.rpartition("|")
            masks.setdefault(choice, {})[name] = mask
        return cls(saved.state["seed"], saved.state["scores"], masks)


def measure_stage(session: Session, number: int, changed: Weights | None = None) -> Measures:
    """Measure what the selections and rates of a stage ask for, on the model as it is; no weight moves.

    `changed` are the weights that weight_change looks at, where they are not the model's.
    """
    stage, roles = session.recipe.stages[number], session.state.roles()
    wanted = Wanted.of(selections(stage, number), roles)
    if scaled := scale(stage):
        scored = {name for name in roles.members["all"] if scaled not in MATRIX_SCORES or len(roles.shapes[name]) > 1}
        wanted.tensors.setdefault(scaled, set()).update(scored)
    return _measure(session, number, wanted, changed=changed)


def measure_turn(session: Session, number: int, choose: str, roles: Roles, turn: int) -> Measures:
    """Measure anew what a turn is chosen by, on other batches than in earlier turns; no weight moves."""
    wanted = Wanted.of({f"stages[{number}].train.rotate.choose": choose}, roles)
    return _measure(session, number, wanted, turn)


def _measure(
    session: Session, number: int, wanted: "Wanted", turn: int = 0, changed: Weights | None = None
) -> Measures:
    stage = session.recipe.stages[number]
    seed = session.seed(number, Place.MEASURING)
    updates = replace(build_updates(session, number, Place.MEASURING), beside={})

    def gradients(names: frozenset[str]) -> dict[str, Gradient]:
        series = updates.after(turn * stage.score.batches)
        loss = session.task.summed_loss
        return measure_gradients(session.state.model, names, series, loss, session.machine, stage.score.batches)

    def pretrained() -> Mapping[str, Tensor]:
        names = wanted.names([*wanted.tensors])  # alone: a second whole model may find no room on the device
        weights = session.pretrained_weights().items()
        return {name: weight.to(session.machine.device) for name, weight in weights if name in names}

    measures = measure(wanted, session.state.model, seed, gradients, pretrained, stage.score.rank, changed or {})
    return replace(measures, turn=turn)


@dataclass(frozen=True)
class Wanted:
    """What is to be measured: tensors by score, and choices among elements with the tensors they are made among."""

    tensors: dict[str, set[str]] = field(default_factory=dict)
    elements: dict[Choice, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Mapping[str, str], roles: Roles) -> "Wanted":
        """Collect what some selections, by their place in the recipe, choose by."""
        wanted = cls()
        for where, text in texts.items():
            for choice in (choice for choice in choices_in(parse(text)) if choice.score):
                names = candidates(choice, roles, where)
                wanted.tensors.setdefault(choice.score, set()).update(names)
                if choice.by == "element":
                    wanted.elements[choice] = [name for name in roles.shapes if name in names]
        return wanted

    def names(self, scores: Sequence[str]) -> frozenset[str]:
        """Give the tensors that one of these scores is wanted of."""
        return frozenset[str]().union(*(self.tensors.get(score, ()) for score in scores))


def measure(
    wanted: Wanted,
    model: nn.Module,
    seed: int,
    gradients: Callable[[frozenset[str]], Mapping[str, Gradient]],
    pretrained: Callable[[], Mapping[str, Tensor]],
    rank: int,
    changed: Weights,
) -> Measures:
    """Measure what is wanted; gradients and pretrained weights are asked for only where a score needs them."""
    by_gradient, by_change = (wanted.names(scores) for scores in (OF_GRADIENTS, OF_CHANGE))
    found = gradients(by_gradient) if by_gradient else {}
    before = pretrained() if by_change else {}
    if added := sorted(by_change - before.keys()):
        raise InputError("weight_change", f"{added[0]} was not there before", "choose of pretrained weights")
    with torch.no_grad():
        facts = {
            name: Facts(weight.detach(), found.get(name), before.get(name), rank, changed.get(name))
            for name, weight in named_weights(model).items()
        }
        tensors = {score: _scores(score, names, facts) for score, names in wanted.tensors.items()}
        masks = {show(choice): _mask(choice, names, facts) for choice, names in wanted.elements.items()}
    return Measures(seed, tensors, masks)


def select_of_model(name: str, text: str, seed: int, task_name: str = "classification") -> tuple[Roles, Selected]:
    """Load a model with a task's head; give its roles, and what a selection picks of it without any data.

    Raises InputError for a selection that cannot be read, matches nothing, or chooses by gradients or changes.
    """
    try:
        parse(text)
    except ValueError as error:
        raise InputError("selection", str(error), "see docs/recipe-reference.md") from None

    def refuse(names: frozenset[str]) -> Any:
        raise InputError("selection", f"{text!r} chooses by training rows", "see what it picks with: alloytune check")

    source = locate(name)
    task = fit(find_task(task_name).blank(), source)
    model, fresh = load_model(task.auto_class, source, load_tokenizer(source), seed, **task.config)
    found = ModelState(model, fresh).roles()
    measures = measure(Wanted.of({"selection": text}, found), model, seed, refuse, lambda: refuse(frozenset()), 1, {})
    return found, select(text, found, "selection", measures)


def _scores(score: str, names: set[str], facts: Mapping[str, Facts]) -> dict[str, float]:
    """Score tensors, in the model's order; those that have no score are left out."""
    values = {name: tensor_score(score, facts[name]) for name in facts if name in names}
    return {name: value for name, value in values.items() if value is not None}


def _mask(choice: Choice, names: Sequence[str], facts: Mapping[str, Facts]) -> dict[str, Tensor]:
    sign = 1 if choice.how == "top" else -1
    return largest({name: sign * element_scores(choice.score, facts[name]) for name in names}, choice.amount)


def _size(names: frozenset[str], shapes: Shapes) -> int:
    return sum(prod(shapes[name]) for name in names)


def _mean(scores: Mapping[str, float], names: frozenset[str], shapes: Shapes) -> float:
    """Give the score of several tensors: the mean over their weights; a tensor without a score counts as 0."""
    return sum(scores.get(name, 0.0) * prod(shapes[name]) for name in sorted(names)) / _size(names, shapes)
