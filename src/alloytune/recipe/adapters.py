"""Rules on adapters across stages: what may be attached when a stage begins.

Stages can be rolled back or left out, so there are several courses that a run may take. They are followed side by
side: each is the adapter that stands after the stages so far. A stage must be right in all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types import Otherwise, Stage
from alloytune.selection import parse, roles_in


@dataclass(frozen=True)
class Course:
    """One way in which a run may go: the stage whose adapter is attached, and whether the next stage is left out."""

    adapter: int | None = None
    skips: bool = False


def check_adapters(stages: list[Stage]) -> Iterator[Mistake]:
    """Find stages that merge, attach or train an adapter which is not, or may not be, as they need it."""
    courses = {Course()}
    for index, stage in enumerate(stages):
        running = {course.adapter for course in courses if not course.skips}
        about = tuple(("stages", before, key) for before in range(index) for key in ("attach", "merge", "accept"))
        for mistake in _check_stage(stages, index, running):
            yield Mistake(mistake.path, mistake.message, mistake.at_key, about=(*about, *_own(index)))
        courses = {after for course in courses for after in _courses_after(stage, index, course)}


def _own(index: int) -> tuple[KeyPath, ...]:
    return ("stages", index, "attach"), ("stages", index, "merge")


def _courses_after(stage: Stage, index: int, course: Course) -> set[Course]:
    """Give the courses that a run may be on after a stage."""
    if course.skips:
        return {Course(course.adapter)}
    kept = index if stage.attach else None if stage.merge else course.adapter
    if stage.accept is None:
        return {Course(kept)}
    match stage.otherwise:
        case "stop":
            return {Course(kept)}
        case "skip":
            return {Course(kept), Course(course.adapter, skips=True)}
        case "rollback" | "retry" | Otherwise():
            return {Course(kept), Course(course.adapter)}


def _check_stage(stages: list[Stage], index: int, before: set[int | None]) -> Iterator[Mistake]:
    """Check one stage, given the adapters that may be attached when it begins."""
    stage, path = stages[index], ("stages", index)
    if stage.merge:
        yield from _check_merge(stages, before, (*path, "merge"))
        before = {None}
    if stage.attach:
        yield from _check_attach(stages, before, (*path, "attach"))
        yield from _check_place(stage, (*path, "attach"))
        before = {index}
    named = [((*path, "train"), stage.train)] + [((*path, "rates", text), text) for text in stage.rates]
    for where, text in named:
        if "adapter" in roles_in(parse(text)):
            yield from _check_named(stages, before, where)


def _check_merge(stages: list[Stage], before: set[int | None], path: KeyPath) -> Iterator[Mistake]:
    """A merge after a stage that was rolled back has nothing to do, which is no mistake."""
    adapters = sorted(_attached(before))
    if not adapters:
        yield Mistake(path, "nothing is attached that could be merged; attach in an earlier stage, or remove `merge`")
    for adapter in adapters:
        attach = stages[adapter].attach
        if attach is not None and attach.bottleneck is not None:
            message = (
                f"the bottleneck adapter of stage {stages[adapter].name!r} cannot be merged: it is not linear, so no "
                "weight can hold it; remove `merge`, or use lora"
            )
            yield Mistake(path, message)


def _check_attach(stages: list[Stage], before: set[int | None], path: KeyPath) -> Iterator[Mistake]:
    for adapter in sorted(_attached(before)):
        is_linear = getattr(stages[adapter].attach, "bottleneck", None) is None
        may = "may still be" if None in before else "is still"
        remedy = "add `merge: true` to this stage to fold it in first, or remove" if is_linear else "remove"
        message = f"the adapter of stage {stages[adapter].name!r} {may} attached; {remedy} one `attach`"
        yield Mistake(path, message, at_key=True)


def _check_place(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    """An adapter stands beside pretrained weights, not on another adapter."""
    for kind in ("lora", "bottleneck"):
        adapter = getattr(stage.attach, kind)
        if adapter is not None and "adapter" in roles_in(parse(adapter.on)):
            message = f"{adapter.on!r} names the adapter itself; name layers, such as 'attention | mlp'"
            yield Mistake((*path, kind, "on"), message)


def _check_named(stages: list[Stage], before: set[int | None], path: KeyPath) -> Iterator[Mistake]:
    at_key = path[-2] == "rates"
    if not _attached(before):
        remedy = "add `attach: {lora: {rank: 8}}` to this stage, or take `adapter` out"
        yield Mistake(path, f"'adapter' is named, but none is attached here; {remedy}", at_key)
    elif None in before:
        can_merge = all(getattr(stages[adapter].attach, "lora", None) for adapter in _attached(before))
        remedy = "attach in this stage, after `merge: true`, or take" if can_merge else "take"
        names = " or ".join(repr(stages[adapter].name) for adapter in sorted(_attached(before)))
        message = (
            f"'adapter' is named, but that of stage {names} may be absent, as a stage before can be rolled back or "
            f"left out; {remedy} `accept` out of the earlier one"
        )
        yield Mistake(path, message, at_key)


def _attached(before: set[int | None]) -> set[int]:
    return {adapter for adapter in before if adapter is not None}
