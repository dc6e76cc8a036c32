"""Rules on `joint`: which keys go with which mode, what views may learn, and weights that could have no effect."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations, pairwise

from alloytune.expression import parse, roles_in
from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types.joint import Joint, Unit, View, WeightPiece, is_constant, read_weight
from alloytune.recipe.types.optimizer import read_optimizer
from alloytune.recipe.types.recipe import Recipe
from alloytune.recipe.types.stage import Stage

# The modes that a key means something in.
_MODES = {"every": ("sample",), "over": ("views",), "kl": ("views",)}
# The modes that a weight can be found in, and what it takes.
_FOUND_IN = {"validate": ("views", "sample"), "gradnorm": ("views",), "uncertainty": ("views",)}


def check_joint(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    """Find what a joint objective cannot be, and what in it would change nothing."""
    if stage.joint is None:
        return
    joint, where = stage.joint, (*path, "joint")
    yield from _check_keys(joint, where)
    yield from _check_weights(joint, where)
    yield from _check_company(stage, joint, path)
    if isinstance(stage.train, str):
        yield from _check_parts(stage.train, joint, where)


def check_views(recipe: Recipe) -> Iterator[Mistake]:
    """Find views that cannot learn what they should, and weights that change nothing; each stage is sound in itself."""
    for number, stage in enumerate(recipe.stages):
        joint, where = stage.joint, ("stages", number, "joint")
        if joint is None:
            continue
        beside = recipe.beside(number) if joint.mode == "views" else {}
        learned = {view: beside.get(view, recipe.learning_of(number)) for view in joint.weights}
        yield from _check_learned(recipe, number, joint, beside)
        pairs = [pair for pair in combinations(learned, 2) if learned[pair[0]] == learned[pair[1]]]
        if joint.kl and joint.mode == "views" and len(learned) > 1 and not pairs:
            message = "no two views learn the same, and outputs of different things do not compare; remove it"
            yield Mistake((*where, "kl"), message, at_key=True, about=tuple((*where, view) for view in beside))
        if isinstance(stage.train, str):
            yield from _check_effect(stage, stage.train, joint, where, learned)
            yield from _check_balance(stage.train, joint, where, learned)


def _check_learned(recipe: Recipe, number: int, joint: Joint, beside: Mapping[View, str]) -> Iterator[Mistake]:
    """One view at least learns what the stage is scored in, and none compares with weights of before."""
    path = ("stages", number, "joint")
    if beside and beside.keys() == joint.weights.keys():
        task = recipe.view(number).task_name
        message = f"every view learns something of its own, and none the {task} that this stage is scored in"
        about = tuple((*path, view) for view in beside)
        yield Mistake(path, f"{message}; give one of them a weight alone", at_key=True, about=about)
    for view in beside:
        if recipe.view(number, view).task_name == "preference":
            message = "preference compares with the weights that a stage began with; give it a stage of its own"
            yield Mistake((*path, view, "task" if joint.own[view].task else "data"), message)


def _check_keys(joint: Joint, path: KeyPath) -> Iterator[Mistake]:
    """A key belongs to its mode, and `of` to `partial`."""
    for key, modes in _MODES.items():
        if getattr(joint, key) and joint.mode not in modes:
            message = f"{key!r} is for mode {' or '.join(modes)}, and this is {joint.mode}; remove it"
            yield Mistake((*path, key), message, at_key=True, about=((*path, "mode"),))
    for view in joint.own if joint.mode != "views" else ():
        message = f"a view learns something of its own in mode views, and this is {joint.mode}; write its weight alone"
        yield Mistake((*path, view), message, at_key=True, about=((*path, "mode"),))
    if joint.over is not None and joint.partial is None:
        message = "'over' is about the partial view, and `partial` has no weight; give one, or remove it"
        yield Mistake((*path, "over"), message, at_key=True, about=((*path, "partial"), (*path, "mode")))
    if joint.partial is not None and joint.of is None:
        message = "'of' is missing; it says which weights of the base are partial, such as 'layers[-2:]'"
        yield Mistake((*path, "of"), message)
    if joint.of is not None and joint.partial is None:
        message = "'of' says what is partial, and `partial` has no weight; give one, or remove it"
        yield Mistake((*path, "of"), message, at_key=True, about=((*path, "partial"),))


def _check_weights(joint: Joint, path: KeyPath) -> Iterator[Mistake]:
    """There are two at least, none is always 0, and `route` has the two that it chooses between."""
    about = tuple((*path, view) for view in ("full", "partial", "adapter", "mode"))
    if len(joint.weights) < 2:
        given = f"only {next(iter(joint.weights))!r} has a weight" if joint.weights else "no weight is given"
        message = f"{given}, and there is nothing to weigh; give two of full, partial and adapter, or remove `joint`"
        yield Mistake(path, message, about=about)
    elif joint.mode == "route" and not {"full", "adapter"} <= joint.weights.keys():
        message = "route chooses between full weights and adapters; give weights for `full` and for `adapter`"
        yield Mistake(path, message, about=about)
    for view, weight in joint.weights.items():
        if all(piece.first == piece.last == 0 for piece in read_weight(weight)):
            message = f"a weight of 0 throughout means no {view} training; leave {view!r} out"
            yield Mistake((*path, view), message)
    yield from _check_rest(joint, path)
    yield from _check_found(joint, path)


def _check_rest(joint: Joint, path: KeyPath) -> Iterator[Mistake]:
    """Some weight is above 0 at any time. How ends in several units lie to each other is known with the rows alone."""
    courses = [read_weight(weight) for weight in joint.weights.values()]
    ends = {(piece.until, piece.unit) for course in courses for piece in course if piece.until is not None}
    if len(courses) < 2 or len({unit for _, unit in ends}) > 1:
        return
    marks = [(0.0, ""), *((until, _name_end(until, unit)) for until, unit in sorted(ends)), (math.inf, "")]
    for (begin, since), (_, until) in pairwise(marks):
        if all(_rests(course, begin) for course in courses):
            span = " ".join([*(["from", since] if since else []), *(["until", until] if until else [])])
            message = (
                f"{span or 'throughout'}, all weights are 0 and nothing would move; give one of them a weight there"
            )
            yield Mistake(path, message, at_key=True, about=tuple((*path, view) for view in joint.weights))
            return


def _rests(course: Sequence[WeightPiece], begin: float) -> bool:
    """Tell whether a weight is 0 for all of the piece that an end of `begin` lies before."""
    piece = next(piece for piece in course if piece.until is None or begin < piece.until)
    return piece.first == piece.last == 0


def _name_end(until: float, unit: Unit | None) -> str:
    return f"{100 * until:g}%" if unit == "share" else f"{until:g} {unit}s"


def _check_found(joint: Joint, path: KeyPath) -> Iterator[Mistake]:
    """Weights that are found are found in one way, against each other, and where views are different functions."""
    about = (*((*path, view) for view in joint.found), (*path, "mode"))
    for view, word in joint.found.items():
        if joint.mode not in _FOUND_IN[word]:
            message = (
                f"{word!r} compares the losses of views in mode {' or '.join(_FOUND_IN[word])}, and in {joint.mode} "
                "there is one loss for all; give numbers"
            )
            yield Mistake((*path, view), message, about=about)
            return
    words = sorted(set(joint.found.values()))
    if len(words) > 1:
        message = f"{words[0]!r} and {words[1]!r} are two ways of finding weights; take one of them"
        yield Mistake((*path, list(joint.found)[-1]), message, about=about)
    elif len(joint.found) == 1:
        message = f"{words[0]!r} weighs views against each other, and no other view has it; write it for two"
        yield Mistake((*path, *joint.found), message, about=about)


def _check_company(stage: Stage, joint: Joint, path: KeyPath) -> Iterator[Mistake]:
    """What else in the stage says what moves when, or which loss is taken."""
    where: KeyPath = (*path, "joint")
    turns = {
        "train": not isinstance(stage.train, str | None),
        "unfreeze": stage.unfreeze,
        "freeze_when": stage.freeze_when,
    }
    for key, is_given in turns.items():
        if is_given:
            what = "`train: {rotate: ...}`" if key == "train" else f"`{key}`"
            message = f"'joint' and {what} both say what moves when; keep one of them in this stage"
            yield Mistake(where, message, at_key=True, about=((*path, key),))
    mode = (*where, "mode")
    losses = {"r_drop": stage.r_drop, "mixout": stage.mixout, "flops": stage.until.flops}
    for key in [key for key, is_given in losses.items() if is_given and joint.mode == "views"]:
        place: KeyPath = ("until", "flops") if key == "flops" else (key,)
        what = "counts the operations of one pass" if key == "flops" else "is about one view of the model"
        message = f"{key!r} {what}, and mode views takes several; remove it, or choose another mode"
        yield Mistake((*path, *place), message, at_key=True, about=(mode,))
    kind, options = read_optimizer(stage.optimizer)
    if joint.mode == "route" and (kind != "adamw" or options["bits"] == 8):
        message = "route scores layers by the memory of adamw in 32 bits; use that"
        yield Mistake((*path, "optimizer"), message, about=(mode,))
    if kind == "schedule_free" and (joint.mode == "sample" or joint.rests):
        message = "schedule_free keeps two values of a weight until the stage ends, and some rest before; use adamw"
        yield Mistake((*path, "optimizer"), message, about=(mode, *((*where, view) for view in joint.rests)))


def _check_parts(train: str, joint: Joint, path: KeyPath) -> Iterator[Mistake]:
    """An adapter's weight needs adapters that move, and what is partial is of the base."""
    about = ((*path[:-1], "train"),)
    moves_adapter = any(role.split(".")[0] == "adapter" for role in roles_in(parse(train)))
    if joint.adapter is not None and not moves_adapter:
        message = f"{train!r} moves no adapter; add `| adapter` to train, or leave this weight out"
        yield Mistake((*path, "adapter"), message, at_key=True, about=about)
    if joint.adapter is None and moves_adapter:
        message = f"{train!r} moves adapters, and nothing weighs them; give `adapter` a weight"
        yield Mistake(path, message, at_key=True, about=(*about, (*path, "adapter")))
    for role in roles_in(parse(joint.of)) if joint.of else ():
        if role.split(".")[0] in ("adapter", "head"):
            message = f"{role!r} is no part of the base; name layers, such as 'layers[-2:]'"
            yield Mistake((*path, "of"), message)


def _check_effect(
    stage: Stage, train: str, joint: Joint, path: KeyPath, learned: Mapping[View, str]
) -> Iterator[Mistake]:
    """Find weights that cancel out: Adam and its kin divide every constant factor of a gradient out again."""
    kind = read_optimizer(stage.optimizer)[0]
    weights = list(joint.weights.values())
    about = (*((*path, view) for view in joint.weights), (*path, "mode"), (*path[:-1], "optimizer"))
    if len(weights) < 2 or (joint.mode == "views" and kind == "sgd") or joint.mode in ("update", "sample"):
        return
    is_equal = all(is_constant(weight) for weight in weights) and len(set(weights)) == 1
    if joint.mode == "views" and (joint.kl or joint.rests):  # the ratio to it counts; what rests, moves nothing
        return
    if is_equal and weights[0] != 1:
        message = f"all weights are {weights[0]:g}, and only their ratios count here; write 1 for each"
        yield Mistake(path, message, at_key=True, about=about)
    if joint.mode != "views" or is_equal:
        return
    shares_head = _moves_head(train) and len(set(learned.values())) < len(learned)
    shares_partial = {"full", "partial"} <= joint.weights.keys()
    if not shares_head and not shares_partial:
        remedy = "let two learn the same" if _moves_head(train) else "train the head as well"
        message = (
            f"no weights are moved by two of the views, and {kind} divides a factor of a gradient out again, so these "
            f"weights would do nothing; {remedy}, use sgd or mode: update, or write 1 for each"
        )
        yield Mistake(path, message, at_key=True, about=about)


def _moves_head(train: str) -> bool:
    return bool({"all", "head"} & set(roles_in(parse(train))))


def _check_balance(train: str, joint: Joint, path: KeyPath, learned: Mapping[View, str]) -> Iterator[Mistake]:
    """GradNorm and its kin look at weights that all balanced views move."""
    found: Collection[View] = joint.found.keys()
    words = set(joint.found.values())
    if len(found) < 2 or joint.mode != "views" or words == {"validate"}:
        return
    shares_head = _moves_head(train) and len({learned[view] for view in found}) == 1
    if not shares_head and set(found) != {"full", "partial"}:
        message = (
            f"{' and '.join(sorted(words))} balances views on weights that all of them move, and {', '.join(found)} "
            "share none; let them learn the same and train the head, or write 1 for each"
        )
        yield Mistake(path, message, at_key=True, about=tuple((*path, view) for view in joint.weights))
