"""Rules on how fast a stage learns: optimizer, its memory, decay and the rate's course."""

from collections.abc import Iterator

from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types.optimizer import Optimizer, read_optimizer
from alloytune.recipe.types.stage import Stage


def check_speed(stages: list[Stage]) -> Iterator[Mistake]:
    """Find what an optimizer cannot do, and settings that would change nothing."""
    for index, stage in enumerate(stages):
        path = ("stages", index)
        named = _named(stage)
        if len(named) != 1:
            yield _not_one(named, (*path, "optimizer"))
            continue
        yield from _check_decay(stage, path)
        yield from _check_optimizer(stage, path)
        before = stages[index - 1] if index else None
        if stage.state == "keep" and (before is None or len(_named(before)) == 1):
            yield from _check_state(stage, before, (*path, "state"))


def _named(stage: Stage) -> list[str]:
    return list(stage.optimizer.model_dump(exclude_none=True)) if isinstance(stage.optimizer, Optimizer) else ["word"]


def _not_one(named: list[str], path: KeyPath) -> Mistake:
    about = tuple((*path, kind) for kind in Optimizer.model_fields)
    if not named:
        return Mistake(path, "optimizer names none; write a word such as sgd, or {sgd: {momentum: 0.9}}", about=about)
    return Mistake(path, f"{' and '.join(named)} cannot be used at once; keep one of them in this stage", about=about)


def _check_decay(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    if stage.decay_to != "zero" and stage.weight_decay == 0:
        message = "a weight_decay of 0 leads nowhere; raise it, or remove decay_to"
        yield Mistake((*path, "decay_to"), message, at_key=True, about=((*path, "weight_decay"),))


def _check_optimizer(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    kind, options = read_optimizer(stage.optimizer)
    about = ((*path, "optimizer"),)
    if options.get("nesterov") and not options["momentum"]:
        where = (*path, "optimizer", kind, "momentum")
        yield Mistake(where, "nesterov looks ahead along the momentum, and that is 0; raise it, or drop nesterov")
    if kind != "schedule_free":
        return
    if stage.schedule not in (None, "constant"):
        message = "schedule_free takes the place of a falling rate; remove schedule, or use adamw"
        yield Mistake((*path, "schedule"), message, about=about)
    if stage.decay_to != "zero":
        message = "schedule_free decays to zero only; remove decay_to, or use adamw"
        yield Mistake((*path, "decay_to"), message, about=about)


def _check_state(stage: Stage, before: Stage | None, path: KeyPath) -> Iterator[Mistake]:
    """Memory fits only the optimizer that it comes from, and schedule-free memory only the weights it ended on."""
    if before is None:
        yield Mistake(path, "there is no stage before the first whose memory could be kept; remove state")
        return
    kind, options = read_optimizer(stage.optimizer)
    about = ((*path[:-1], "optimizer"), ("stages", int(path[1]) - 1, "optimizer"))
    if read_optimizer(before.optimizer) != (kind, options):
        message = f"stage {before.name!r} has another optimizer or other options, and its memory does not fit {kind}"
        yield Mistake(path, f"{message}; give both the same, or remove state", about=about)
    elif kind == "schedule_free" and before.keep == "best":
        message = f"schedule_free remembers the last weights, and stage {before.name!r} keeps the best"
        yield Mistake(path, f"{message}; give that stage `keep: last`, or remove state", about=about)
