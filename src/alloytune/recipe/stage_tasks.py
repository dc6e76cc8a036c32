"""Rules on stages that learn something of their own: what carries over to them, and from them to others."""

from collections.abc import Iterator

from alloytune.recipe.adapters import standings_after_leaving, standings_before
from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types.data import Data
from alloytune.recipe.types.joint import OwnView
from alloytune.recipe.types.recipe import Recipe, path_of
from alloytune.recipe.types.stage import Stage


def check_stage_tasks(recipe: Recipe) -> Iterator[Mistake]:
    """Find stages whose own task or data cannot be, given the others; each is sound in itself."""
    stages = recipe.stages
    learnings = [recipe.learning_of(number) for number in range(len(stages))]
    if learnings[-1]:
        path = _own(stages[-1], len(stages) - 1)
        message = f"the last stage must learn {recipe.task_name}, from the recipe's data: that is tested and saved"
        yield Mistake(path, f"{message}; move this stage up", at_key=True, about=(("task",), ("data",)))
    for number, (stage, learning) in enumerate(zip(stages, learnings, strict=True)):
        if learning:
            yield from _check_kinds(stage, number)
        if stage.state == "keep" and number and learnings[number - 1] != learning:
            message = "the stage before learns something else; its optimizer's memory does not fit here; remove it"
            yield Mistake(("stages", number, "state"), message, about=(("stages", number - 1, "task"),))
    for learner, own in recipe.learners.items():
        yield from _check_data(own, path_of(learner))
    yield from _check_adapters(stages, learnings)


def _check_adapters(stages: list[Stage], learnings: list[str]) -> Iterator[Mistake]:
    """Adapters stay with what they were trained for: they are merged or dropped where something else is learned."""
    for number, standings in enumerate(standings_before(stages)):
        staying = frozenset[tuple[int, int]]().union(*standings_after_leaving(stages, number, standings))
        others = sorted(place for place in staying if learnings[place[0]] != learnings[number])
        if others:
            before = stages[others[0][0]]
            name = before.attaches[others[0][1]].called
            message = f"adapter {name!r} of stage {before.name!r} was trained for something else; write `merge: true`"
            about = tuple(("stages", n, key) for n in range(number + 1) for key in ("attach", "merge", "drop", "task"))
            yield Mistake(("stages", number, "name"), f"{message}, or drop it", about=about)


def _check_kinds(stage: Stage, number: int) -> Iterator[Mistake]:
    """What is attached while something else is learned can be folded into the body that carries over."""
    kind = next((attach.kinds[0] for attach in stage.attaches if not attach.mergeable), None)
    if kind:
        message = f"a {kind} adapter cannot be merged into the body that carries over; attach lora"
        yield Mistake(("stages", number, "attach"), message, about=(_own(stage, number),))


def _check_data(own: Stage | OwnView, of: KeyPath) -> Iterator[Mistake]:
    """Own rows of a stage or a view are trained on and validated, and never tested."""
    if own.data is None:
        return
    path, whose = (*of, "data"), "stage" if isinstance(own, Stage) else "view"
    if own.data.test is not None:
        message = f"a {whose}'s own data is not tested; remove it"
        yield Mistake((*path, "test"), message, at_key=True)
    if own.data.split.test and "test" in own.data.split.model_fields_set:
        message = f"a {whose}'s own data is not tested, so nothing is cut off for that; remove it"
        yield Mistake((*path, "split", "test"), message, at_key=True)


def without_test(data: Data) -> Data:
    """Give a stage's data as it is split: nothing of it is tested."""
    return data.model_copy(update={"split": data.split.model_copy(update={"test": 0.0})})


def _own(stage: Stage, number: int) -> KeyPath:
    """Give the key that says that a stage learns something of its own."""
    return ("stages", number, "task" if stage.task is not None else "data")
