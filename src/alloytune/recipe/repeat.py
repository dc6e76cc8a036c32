"""Blocks of stages that repeat, written out: nothing after reading knows of them."""

from collections.abc import Iterable

from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types.recipe import Recipe, Repetition, WrittenRecipe
from alloytune.recipe.types.stage import Stage


def expand(written: WrittenRecipe) -> tuple[Recipe, list[KeyPath]]:
    """Write blocks that repeat out; also give, for every stage, its path in the recipe as it was written.

    A block's stages get the number of the round, as in `lora-1`, and name each other with it.
    """
    stages: list[Stage] = []
    origins: list[KeyPath] = []
    for index, entry in enumerate(written.stages):
        if isinstance(entry, Stage):
            stages.append(entry)
            origins.append(("stages", index))
            continue
        for number in range(1, entry.repeat.times + 1):
            stages += _round(entry, number)
            origins += [("stages", index, "repeat", "stages", inner) for inner in range(len(entry.repeat.stages))]
    head = {key: getattr(written, key) for key in written.model_fields_set - {"stages"}}
    return Recipe(**head, stages=stages), origins


def as_written(path: KeyPath, origins: list[KeyPath]) -> KeyPath:
    """Give the path that the user wrote for one into the stages written out."""
    match path:
        case ("stages", int(index), *rest):
            return *origins[index], *rest
    return path


def in_the_writing(mistakes: Iterable[Mistake], origins: list[KeyPath]) -> list[Mistake]:
    """Give mistakes the paths that the user wrote; one that every round of a block makes is told once."""
    found: dict[KeyPath, Mistake] = {}
    told: list[Mistake] = []
    for mistake in mistakes:
        path = as_written(mistake.path, origins)
        about = tuple(as_written(other, origins) for other in mistake.about)
        hides = tuple(as_written(other, origins) for other in mistake.hides)
        placed = Mistake(path, mistake.message, mistake.at_key, hides, about)
        if "repeat" not in path or found.setdefault(path, placed) is placed:
            told.append(placed)
    return told


def _round(entry: Repetition, number: int) -> list[Stage]:
    names = {stage.name for stage in entry.repeat.stages}
    stages = []
    for stage in entry.repeat.stages:
        update: dict[str, object] = {"name": f"{stage.name}-{number}"}
        if stage.combine is not None:
            named = [f"{name}-{number}" if name in names else name for name in stage.combine.with_]
            update["combine"] = stage.combine.model_copy(update={"with_": named} if named else {})
        if stage.score.after in names:
            update["score"] = stage.score.model_copy(update={"after": f"{stage.score.after}-{number}"})
        stages.append(stage.model_copy(update=update))
    return stages
