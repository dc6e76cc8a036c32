"""From a stage's `joint` to objects: what is full, partial and adapter, the course of the weights, the loss."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from alloytune.build.pace import make_stage_loss
from alloytune.build.session import Place, Session
from alloytune.errors import InputError
from alloytune.models.adapters import adapted_layers
from alloytune.models.replay import layers_before_adapters
from alloytune.models.roles import Roles
from alloytune.models.weights import Weights, copy_weights, named_weights
from alloytune.recipe.types.joint import Joint, View, WeightPiece, is_constant, read_weight
from alloytune.recipe.types.optimizer import read_optimizer
from alloytune.recipe.types.stage import Stage
from alloytune.selection import Chooser, resolve
from alloytune.tasks.abilities import Undivided
from alloytune.tasks.task import Batch, Scores
from alloytune.tasks.tokenized import count_tokens, passes
from alloytune.train.balance import ByGradients, ByUncertainty, ByValidation, last_losses
from alloytune.train.joint import VIEWS_OF, Balance, Blend, Draws, Piece, WeightCourse, weighted
from alloytune.train.loop import Loss
from alloytune.train.movement import relative_movement
from alloytune.train.moving import Around, Moving, Part
from alloytune.train.route import COUNTS, Router, Site
from alloytune.train.turns import Course
from alloytune.train.views import Learned, Views, with_adapters_that_move

ROWS_PER_BATCH = 64  # of validation


def find_parts(
    stage: Stage, where: str, roles: Roles, moving: frozenset[str], chooser: Chooser | None
) -> dict[str, Part]:
    """Give the part of every weight that moves; none where a stage has no `joint`.

    Raises InputError where a part has no weight, or a weight no part.
    """
    if stage.joint is None:
        return {}
    joint, where = stage.joint, f"{where}.joint"
    adapter, head = (roles.members.get(role, frozenset()) for role in ("adapter", "head"))
    of = resolve(joint.of, roles, f"{where}.of", chooser) if joint.of else frozenset[str]()
    parts: dict[str, Part] = {
        name: "adapter" if name in adapter else "head" if name in head else "partial" if name in of else "full"
        for name in moving
    }
    found = set(parts.values())
    for view in joint.weights:
        if view not in found and not (view == "full" and "partial" in found):
            remedy = "leave this weight out, or add to train what it is about"
            raise InputError(f"{where}.{view}", f"no {view} weights move in this stage", remedy)
    for part in sorted(found - {"head"}):
        if not joint.weights.keys() & set(VIEWS_OF[part]):
            names = sorted(name for name in parts if parts[name] == part)
            what = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
            raise InputError(where, f"nothing weighs {what}", f"give {part!r} a weight, or take them out of train")
    return parts


def _require_difference(session: Session, number: int, joint: Joint, where: str, blend: Blend) -> None:
    """Raise InputError where the full and the partial view are one function, computed twice."""
    beside = session.recipe.beside(number)
    both = {"full", "partial"} <= joint.weights.keys() and beside.get("full") == beside.get("partial")
    if both and joint.over != "pretrained" and "full" not in blend.parts.values():
        raise InputError(
            where,
            "nothing of the base but the partial weights moves, so that the full view is the partial one again",
            "leave one of the two out, or add to train what is full",
        )


def _require_effect(stage: Stage, joint: Joint, where: str, blend: Blend) -> None:
    """Raise InputError where the weights of views divide out, because no weights are of two of them."""
    if read_optimizer(stage.optimizer)[0] == "sgd" or joint.kl or joint.rests or set(joint.weights.values()) == {1.0}:
        return
    if not any(len(joint.weights.keys() & set(blend.views_of(name))) > 1 for name in blend.parts):
        raise InputError(
            where,
            "no weights are moved by two of the views, so that adaptive optimizers divide these weights out",
            "train the head as well, use sgd or mode: update, or write 1 for each",
        )


def constant_factors(stage: Stage) -> dict[Part, float]:
    """Give what the rates of parts are multiplied with in mode `update`, where that is the same throughout."""
    if stage.joint is None or stage.joint.mode != "update":
        return {}
    weights = stage.joint.weights
    parts: tuple[Part, ...] = ("full", "partial", "adapter")
    of = {part: [weights[view] for view in VIEWS_OF[part] if view in weights] for part in parts}
    return {
        part: sum(read_weight(weight)[0].first for weight in found)
        for part, found in of.items()
        if all(is_constant(weight) for weight in found)
    }


def make_joint_course(session: Session, number: int, moving: Moving, in_updates: Callable[[str], int]) -> Blend:
    """Translate the weights of a stage, and in mode `sample` its draws."""
    joint = session.recipe.stages[number].joint
    assert joint is not None
    weights = {view: _course(read_weight(weight), in_updates) for view, weight in joint.weights.items()}
    parts = {name: group.part for group in moving.groups for name in group.names}
    heads = _views_of_heads(session, number, joint, parts)
    where = f"stages[{number}].joint"
    if joint.mode == "sample":
        every, seed = in_updates(joint.every or "1 update"), session.seed(number, Place.DRAWING_VIEWS)
        return Draws(moving.selected, parts, weights, every, seed, where)  # type: ignore[arg-type]
    blend = Blend(moving.selected, parts, weights, heads, where)  # type: ignore[arg-type]
    if joint.mode == "views":
        _require_difference(session, number, joint, where, blend)
        _require_effect(session.recipe.stages[number], joint, where, blend)
    blend.balance = _balance(session, number, joint, blend)
    return blend


def _balance(session: Session, number: int, joint: Joint, blend: Blend) -> Balance | None:
    """Give what finds the weights of views in every update; raises InputError where they share no weights."""
    word = next(iter(joint.found.values()), None)
    if word not in ("gradnorm", "uncertainty"):
        return None
    views = frozenset(joint.found)
    weights = named_weights(session.state.model)
    shared = [weights[name] for name in blend.parts if views <= set(blend.views_of(name))]
    if not shared:
        what = f"{word} balances views on weights that all of them move, and {', '.join(joint.found)} have none"
        raise InputError(f"stages[{number}].joint", what, "train the head, or write 1 for each")
    return ByGradients(blend, views, shared) if word == "gradnorm" else ByUncertainty(blend, views)


def _views_of_heads(
    session: Session, number: int, joint: Joint, parts: Mapping[str, str | None]
) -> dict[str, frozenset[View]]:
    """Give which views every weight of a head belongs to, where views learn something of their own."""
    beside, heads = session.recipe.beside(number), session.state.heads
    if not beside:
        return {}
    of_stage = frozenset(joint.weights) - beside.keys()
    own = frozenset[str]().union(*map(heads.own_weights, beside.values()))
    found = {n: frozenset[View]() if n in own else of_stage for n, part in parts.items() if part == "head"}
    for view, learning in beside.items():
        found |= {name: found[name] | {view} for name in heads.weights_of(learning) & found.keys()}
    return found


def _course(pieces: tuple[WeightPiece, ...], in_updates: Callable[[str], int]) -> WeightCourse:
    def end(piece: WeightPiece) -> float:
        if piece.until is None:
            return float("inf")
        return piece.until if piece.unit == "share" else in_updates(f"{piece.until:.9f} {piece.unit}s")

    by_share = pieces[0].unit in (None, "share")
    made = tuple(Piece(piece.first, piece.last, piece.shape, end(piece)) for piece in pieces)
    return WeightCourse(made, "share" if by_share else "update")


def make_training_loss(session: Session, number: int, moving: Moving, course: Course) -> Loss:
    """Give the loss that a stage trains on; `course` knows the weights of a joint one. Before its first update."""
    stage = session.recipe.stages[number]
    joint, state = stage.joint, session.state
    if joint is None or joint.mode not in ("views", "sample"):
        return make_stage_loss(session, number, moving)
    if joint.mode == "sample":
        return with_adapters_that_move(make_stage_loss(session, number, moving), state.adapter_names)
    assert isinstance(course, Blend)
    return make_views(session, number, course)


def make_views(session: Session, number: int, course: Blend) -> Views:
    """Give the views of a stage's joint objective; in mode `sample` those that an update may belong to."""
    stage, state = session.recipe.stages[number], session.state
    joint = stage.joint
    assert joint is not None
    own = {
        view: Learned(name, session.learnings[name].task, state.heads.model_of(name))
        for view, name in session.recipe.beside(number).items()
    }
    return Views(
        session.task,
        course,
        label_smoothing=stage.label_smoothing,
        kl=joint.kl,
        frozen=_frozen(session, joint, course.parts) if joint.mode == "views" else {},
        shared=tuple(layers_before_adapters(state.model, state.roles())),
        own=own,
    )


def make_evaluation(
    session: Session, number: int, course: Course, loss: Loss, validate: Callable[[], Scores]
) -> Callable[[], Scores]:
    """Give what scores the model within a stage; where validation finds weights of views, it does that as well."""
    joint = session.recipe.stages[number].joint
    if joint is None or "validate" not in joint.found.values():
        return validate
    assert isinstance(course, Blend)
    views = loss if isinstance(loss, Views) else make_views(session, number, course)
    finding = ByValidation(course, joint.found)

    def evaluate() -> Scores:
        scores = validate()
        model = session.state.model
        model.eval()
        with session.machine.autocast():
            finding.after_evaluation(views.means(model, _validation(session, number), finding.views))
        return scores

    return evaluate


def _validation(session: Session, number: int) -> Iterator[Batch]:
    """Give the validation rows of all that a stage's views learn, in batches that bear its name."""
    beside = dict.fromkeys(session.recipe.beside(number).values())
    for name, learning in [(None, session.learning), *((name, session.learnings[name]) for name in beside)]:
        examples = learning.examples["validation"]
        lengths = count_tokens(examples)
        for chosen in passes(np.arange(len(examples)), lengths, ROWS_PER_BATCH, session.machine.pass_tokens):
            batch = learning.task.collate([examples[row] for row in chosen], session.tokenizer)
            yield replace(batch, learning=name).to(session.machine.device)


def _frozen(session: Session, joint: Joint, parts: Mapping[str, Part]) -> Weights:
    """Give the values of the base around the partial weights, on the model's device."""
    if joint.partial is None:
        return {}
    roles = session.state.roles().members
    moved = session.state.touched if joint.over == "pretrained" else frozenset(parts)
    base = roles["all"] - roles["head"]
    names = {name for name in moved & base if parts.get(name) != "partial"}
    values = session.pretrained_weights() if joint.over == "pretrained" else copy_weights(session.state.model, names)
    return {name: values[name].to(session.machine.device) for name in names}


def make_around(session: Session, number: int, course: Course) -> Around | None:
    """Give what goes around every step of the optimizer.

    In `update` it is the course of the rates, in `route` the choice, in `views` what finds the weights, if anything.
    """
    joint = session.recipe.stages[number].joint
    if joint is None or joint.mode == "sample":
        return None
    assert isinstance(course, Blend)
    if joint.mode == "views":
        return course.balance.around if course.balance else None
    if joint.mode == "update":
        return partial(weighted, course)
    return Router(find_sites(session, number, course), course, named_weights(session.state.model)).around


def find_sites(session: Session, number: int, course: Blend) -> list[Site]:
    """Give the layers of which full weights and an adapter move; raises InputError where there is none."""
    sites = []
    for full, adapter in adapted_layers(session.state.model):
        of_full = tuple(name for name in full if name in course.parts)
        of_adapter = tuple(name for name in adapter if name in course.parts)
        if of_full and of_adapter:
            sites.append(Site(of_full, of_adapter))
    if not sites:
        remedy = "train both, or let the adapters go on what moves"
        raise InputError(f"stages[{number}].joint.mode", "no layer moves full weights and an adapter", remedy)
    return sites


def typical_updates(course: Course, middle: int) -> dict[int, float]:
    """Give updates that stand for those of a stage, with their shares: one of each view that is drawn, or `middle`."""
    if not isinstance(course, Draws):
        return {middle: 1.0}
    found: dict[str, int] = {}
    for update in range(middle, middle + 100 * course.every, course.every):
        number = course.number(update, 0.5)
        found.setdefault(course.turn(number).notes["view"], update)
    total = sum(course.now[view] for view in course.now if view in found)
    return {update: course.now[view] / total for view, update in found.items()}  # type: ignore[index]


def joint_facts(session: Session, course: Course) -> Callable[[], dict[str, Any]]:
    """Give what tells, whenever it is asked, how a joint stage stands; it knows nothing of another. Before training.

    `weights` are those of the last update, `movement` that since now by part, `view_losses` what weights were found by
    at the last evaluation, `routed` the share of choices that full weights have won.
    """
    if not isinstance(course, Blend):
        return dict
    model, parts = session.state.model, course.parts
    start = copy_weights(model, parts)

    def facts() -> dict[str, Any]:
        counts = course.memory[COUNTS].tolist() if COUNTS in course.memory else []
        routed = {"routed": counts[0] / sum(counts)} if sum(counts) else {}
        losses = {"view_losses": found} if (found := last_losses(course)) else {}
        return {"movement": relative_movement(model, start, parts), "weights": dict(course.now), **losses, **routed}

    return facts


def _require_movement(course: Blend, num_updates: int | None) -> None:
    """Look at every update in which a piece of a weight begins; raises InputError where all weights rest."""
    by_share = any(weight.by == "share" and len(weight.pieces) > 1 for weight in course.weights.values())
    if by_share and num_updates is None:
        return
    begins = {update for weight in course.weights.values() for update in weight.begins(num_updates)}
    for update in sorted(begins):
        if num_updates is None or update <= num_updates:
            course.number(update, (update - 1) / num_updates if num_updates else 0.0)


def check_joint(session: Session, number: int, course: Course, num_updates: int | None) -> None:
    """Raise InputError where routing finds no layer, a view cannot do without an adapter, or all weights rest at once.

    `num_updates` are those of the stage, where nothing else can end it: else only training shows where shares lie.
    """
    joint = session.recipe.stages[number].joint
    if joint is None:
        return
    assert isinstance(course, Blend)
    _require_movement(course, num_updates)
    if joint.mode == "route":
        sites = find_sites(session, number, course)
        chosen = {view for site in sites for name in (*site.full, *site.adapter) for view in course.views_of(name)}
        for view in joint.weights.keys() - chosen:
            what = f"no {view} weights are in a layer whose adapter moves, so that this prior decides nothing"
            raise InputError(f"stages[{number}].joint.{view}", what, "leave it out, or let adapters go on those layers")
    tasks = [session.task, *(session.learnings[name].task for name in session.recipe.beside(number).values())]
    is_undivided = any(isinstance(task, Undivided) for task in tasks)
    if joint.mode in ("views", "sample") and is_undivided and session.recipe.micro_batch:
        raise InputError(
            f"stages[{number}].joint.mode",
            "a loss of whole updates runs micro-batches twice, and this mode changes the model in between",
            "remove micro_batch, or use mode: update",
        )
    for attachment in session.state.attachments if joint.mode in ("views", "sample") else ():
        if attachment.settings.moves_base:
            raise InputError(
                f"stages[{number}].joint.mode",
                f"the adapter {attachment.name!r} took its start out of the base (pissa), which is no model without it",
                "use plain lora, or mode: update",
            )
