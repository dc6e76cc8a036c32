"""`rate: auto`, found: from the starting value for what moves to a rate that the data and the model bear.

Every side of a stage (pretrained weights, adapters, or the head where it moves alone) is swept by itself in a range
test on copies of the weights. What is found goes into the run's `resolved.json`, which a resume reads, and the curves
into the stage's `rates.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from alloytune.build.joint import constant_factors
from alloytune.build.pace import in_training_form, make_stage_clip, make_stage_loss, make_stage_optimizer
from alloytune.build.plan import build_plan, build_updates
from alloytune.build.session import Place, Session
from alloytune.models.roles import Roles
from alloytune.models.weights import Weights, copy_weights, free_only, put_weights
from alloytune.recipe.types.choosing import Scaled
from alloytune.recipe.types.recipe import Recipe
from alloytune.recipe.types.stage import Stage
from alloytune.selected import Selected
from alloytune.selection import Chooser, resolve
from alloytune.tasks.task import Batch
from alloytune.tasks.tokenized import count_tokens
from alloytune.train.moving import Group, Moving, Part
from alloytune.train.prefix_reader import PrefixReader
from alloytune.train.range_test import RangeTest, num_sweep_updates, range_test
from alloytune.train.turns import Turns, steady

Side = Literal["pretrained", "adapter", "head"]


@dataclass(frozen=True)
class Found:
    """The rate of a side: where the search started, what it came to, and the sweep; None where none could be run.

    Of several adapters that start at rates of their own, these are the slowest's, and the others keep their distance.
    """

    start: float
    rate: float
    sweep: RangeTest | None

    def to_json(self) -> dict[str, Any]:
        """Give rate and curve, [rate, change of the loss] by update."""
        curve = [] if self.sweep is None else zip(self.sweep.multipliers, self.sweep.changes, strict=True)
        return {
            "start": self.start,
            "rate": self.rate,
            "curve": [[multiplier * self.start, change] for multiplier, change in curve],
        }


def find_rates(
    session: Session, number: int, moving: Moving, selected: Selected, reader: PrefixReader, held: Weights
) -> dict[Side, Found]:
    """Find the rates that a stage leaves to `auto`, by moving what of it is `selected`; weights stay as they are.

    `reader` gives what the frozen layers give; `held` are copies of weights as they are, which need no other.

    A stage that is too short for a sweep, or that time alone ends, keeps its starting values. Weights of a joint
    objective stay out of it, or they would be searched away.
    """
    moving = _unweighted(moving, constant_factors(session.recipe.stages[number]))
    sides = starting_rates(moving)
    if not sides:
        return {}
    updates = replace(build_updates(session, number, Place.SEARCHING), beside={})
    num_updates = num_searching(session, number, moving)
    model = session.state.model
    before = {**held, **copy_weights(model, moving.names - held.keys() if num_updates else ())}
    found: dict[Side, Found] = {}
    for side, start in sides.items():
        sweep = None
        if num_updates:
            rows = list(islice(updates.after(0), num_updates))
            sweep = _sweep(session, number, _only(moving, side), selected, rows, reader)
            put_weights(model, before)
        multiplier = None if sweep is None else sweep.chosen
        found[side] = Found(start, start if multiplier is None else start * multiplier, sweep)
    free_only(model, moving.names)
    return found


def settle(
    recipe: Recipe, number: int, found: Mapping[Side, Found], moving: Moving, roles: Roles, chooser: Chooser
) -> Recipe:
    """Give the recipe with the found rates in the place of a stage's `auto`."""
    if not found:
        return recipe
    main = next(found[side] for side in ("pretrained", "adapter", "head") if side in found)
    of_weights: dict[str, float] = {}
    for group in moving.groups:
        if group.start is not None and (side := _side(group)) != "pretrained":
            rate = _rate_beside(group.start, found["adapter"] if side == "adapter" else main, side)
            of_weights |= dict.fromkeys(group.names, rate)
    of_roles = {
        role: of_weights[min(names & of_weights.keys())]
        for role, names in roles.members.items()
        if (role == "head" or role.startswith("adapter.")) and names & of_weights.keys()
    }
    stages = [*recipe.stages]
    stages[number] = _settled(stages[number], main.rate, of_roles, roles, chooser)
    return recipe.model_copy(update={"stages": stages})


def _rate_beside(start: float, found: Found, side: Side) -> float:
    """Give the rate of weights that started at `start`, where one was found: adapters keep their distance from it.

    A head either started with it and goes with it, or keeps a starting rate of its own.
    """
    return start if side == "head" and start != found.start else found.rate * (start / found.start)


def starting_rates(moving: Moving) -> dict[Side, float]:
    """Give the sides whose rate is left to `auto`, with the least of their starting values.

    The head goes with another side, if there is any.
    """
    starts: dict[Side, float] = {}
    for group in moving.groups:
        if group.start is not None:
            starts[_side(group)] = min(group.start, starts.get(_side(group), group.start))
    return {side: start for side, start in starts.items() if side != "head" or len(starts) == 1}


def _side(group: Group) -> Side:
    return group.role if group.role in ("adapter", "head") else "pretrained"


def _unweighted(moving: Moving, factors: Mapping[Part, float]) -> Moving:
    """Take the weights of a joint objective out of the rates that are still to be found."""

    def plain(group: Group) -> Group:
        factor = factors.get(group.part, 1.0) if group.part and group.start is not None else 1.0
        return replace(group, rate=group.rate / factor)

    return replace(moving, groups=tuple(map(plain, moving.groups)))


def _only(moving: Moving, side: Side) -> Moving:
    """Leave out the other side, if its rate is still to be found."""
    wanted = (side, "head")
    return replace(
        moving, groups=tuple(group for group in moving.groups if group.start is None or _side(group) in wanted)
    )


def num_searching(session: Session, number: int, moving: Moving) -> int:
    """Give the updates that a search takes for each side, 0 where there is none or the stage is too short for it."""
    num_sides = len(starting_rates(moving))
    if not num_sides:
        return 0
    updates = build_updates(session, number, 0)
    plan = build_plan(session, number, 0, updates)
    per_update = int(count_tokens(updates.examples).sum()) / updates.per_epoch
    limits = [plan.max_updates, plan.max_tokens and plan.max_tokens / per_update]
    return num_sweep_updates(min((limit for limit in limits if limit), default=0), num_sides)


def _sweep(
    session: Session,
    number: int,
    moving: Moving,
    selected: Selected,
    updates: list[list[Batch]],
    reader: PrefixReader,
) -> RangeTest:
    model = session.state.model
    optimizer = make_stage_optimizer(session, number, moving)
    turns = Turns(steady(selected & moving.selected), moving.names, model, optimizer)
    with in_training_form(session, number), reader.running():
        return range_test(
            model,
            optimizer,
            updates,
            reader.loss(make_stage_loss(session, number, moving)),
            session.machine,
            still=lambda update: turns.at(update, 0.0),
            clip=make_stage_clip(session.recipe.stages[number]),
            seed=session.seed(number, Place.SEARCHING),
        )


def _settled(stage: Stage, main: float, of_roles: Mapping[str, float], roles: Roles, chooser: Chooser) -> Stage:
    """Write numbers for `auto`; adapters and heads that move at a rate of their own get entries in `rates`."""
    own: dict[str, float | Literal["auto"]] = {}
    left = frozenset[str]().union(*(roles.members[role] for role in of_roles))
    for text, rate in stage.rates.items():
        named = resolve(text, roles, "rates", chooser)
        entries = _entries(named & left, of_roles, main, roles) if rate == "auto" else []
        alone = next((its_rate for role, its_rate in entries if named <= roles.members[role]), None)
        if alone is not None:
            own[text] = alone
        else:
            own |= {f"({text}) & {role}": its_rate for role, its_rate in entries}
            own[text] = main if rate == "auto" else rate
        left -= named
    common = stage.rate
    largest = common.largest if isinstance(common, Scaled) else common
    if largest == "auto":
        common = common.model_copy(update={"largest": main}) if isinstance(common, Scaled) else main
        own |= dict(_entries(left, of_roles, main, roles))
    return stage.model_copy(update={"rate": common, "rates": own})


def _entries(
    names: frozenset[str], of_roles: Mapping[str, float], main: float, roles: Roles
) -> list[tuple[str, float]]:
    """Give those of these weights that move at another rate, by role: all adapters as one where they share it."""
    found = {role: rate for role, rate in of_roles.items() if roles.members[role] & names}
    of_adapters = {role: rate for role, rate in found.items() if role != "head"}
    if len(shared := set(of_adapters.values())) == 1:
        of_adapters = {"adapter": shared.pop()}
    of_head = {"head": found["head"]} if "head" in found else {}
    return [(role, rate) for role, rate in (of_adapters | of_head).items() if rate != main]
