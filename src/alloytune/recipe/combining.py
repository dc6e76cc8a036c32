"""Rules on `combine`: which snapshots there are, how many a way of combining takes, and that they fit together."""

from collections.abc import Iterator

from alloytune.recipe.adapters import Standing, standings_then_and_now
from alloytune.recipe.nearest import nearest_word
from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types.choosing import Combine
from alloytune.recipe.types.stage import Stage
from alloytune.recipe.types.values import PRETRAINED

# How many snapshots each way takes: at least, at most, and in words.
_COUNTS = {
    "interpolate": (2, 2, "two, such as [pretrained, full]"),
    "average": (2, 100, "at least two, such as [first, second]"),
    "running-average": (0, 0, "none: it averages the evaluations of its own stage"),
    "greedy-soup": (2, 100, "at least two, such as [first, second]"),
    "sum-of-changes": (1, 100, "at least one"),
    "reset": (1, 1, "one, such as [pretrained]"),
}
_WEIGHTED = ("interpolate", "sum-of-changes", "running-average")


def check_combining(stages: list[Stage]) -> Iterator[Mistake]:
    """Find what cannot be combined."""
    for index, stage in enumerate(stages):
        if stage.combine is not None:
            path: KeyPath = ("stages", index, "combine")
            yield from _check_with(stages, index, stage.combine, (*path, "with"))
            yield from _check_weight(stage.combine, path)
            yield from _check_how(stage, stage.combine, path)


def _check_with(stages: list[Stage], index: int, combine: Combine, path: KeyPath) -> Iterator[Mistake]:
    """Snapshots are there, are enough, and carry the adapter that the model has."""
    least, most, words = _COUNTS[combine.how]
    if not least <= len(combine.with_) <= most:
        message = f"{combine.how} takes {words}; `with` names {len(combine.with_)}"
        yield Mistake(path, message, about=((*path[:-1], "how"),))
    if combine.how == "sum-of-changes":
        yield from _check_adapters(stages, None, index, combine, path)  # changes are counted from there
    names = [stage.name for stage in stages]
    for place, name in enumerate(combine.with_):
        where = (*path, place)
        about = tuple(("stages", number, "name") for number in range(len(stages)))
        if name in combine.with_[:place]:
            yield Mistake(where, f"{name!r} is named twice; name it once")
        elif name == PRETRAINED:
            if combine.how == "sum-of-changes":
                yield Mistake(where, "changes are counted from 'pretrained' anyway; name the stages that changed it")
                continue
            yield from _check_adapters(stages, None, index, combine, where)
        elif name not in names[: index + 1]:
            yield Mistake(where, _unknown(name, names, index), about=about)
        elif name != names[index]:
            yield from _check_adapters(stages, names.index(name), index, combine, where)


def _unknown(name: str, names: list[str], index: int) -> str:
    if name in names:
        return f"stage {name!r} comes later; name an earlier stage, this one, or 'pretrained'"
    known = [PRETRAINED, *names[: index + 1]]
    near = nearest_word(name, known)
    return f"there is no stage {name!r}; " + (f"did you mean {near!r}?" if near else f"there are {', '.join(known)}")


def _check_adapters(
    stages: list[Stage], earlier: int | None, index: int, combine: Combine, path: KeyPath
) -> Iterator[Mistake]:
    """Weights under different adapters do not go together; `reset` takes single weights back as they were."""
    if combine.how == "reset":
        return
    source = "the pretrained model" if earlier is None else f"the model after stage {stages[earlier].name!r}"
    found = standings_then_and_now(stages, earlier, index)
    about = tuple(
        ("stages", before, key) for before in range(index + 1) for key in ("attach", "merge", "drop", "accept")
    )
    for then, now in sorted(found, key=str):
        if then != now:
            message = (
                f"{source} carries {_adapter(stages, then)}, the model here {_adapter(stages, now)}; their "
                "weights do not fit together; "
            )
            if now:
                can_merge = all(stages[whose].attaches[place].mergeable for whose, place in now)
                message += f"add `{'merge' if can_merge else 'drop'}: true` to this stage"
            else:
                message += f"name {stages[index].name!r} for the model after its merge"
            yield Mistake(path, message, about=about)
            return


def _adapter(stages: list[Stage], standing: Standing) -> str:
    whose = sorted({f"stage {stages[index].name!r}" for index, _ in standing})
    return f"the adapter of {' and '.join(whose)}" if whose else "no adapter"


def _check_weight(combine: Combine, path: KeyPath) -> Iterator[Mistake]:
    where, weight, how = (*path, "weight"), combine.weight, combine.how
    about = ((*path, "how"), (*path, "with"))
    if weight is None:
        return
    message = ""
    if how not in _WEIGHTED:
        message = f"{how} takes no weight; remove it, or choose one of {', '.join(_WEIGHTED)}"
    elif isinstance(weight, list) and (how != "sum-of-changes" or len(weight) != len(combine.with_)):
        message = f"a list of {len(weight)} does not fit; only sum-of-changes takes one, a number for each in `with`"
    elif how == "running-average" and (weight == "validate" or not 0 < float(weight) <= 1):  # type: ignore[arg-type]
        message = f"running-average takes a share above 0 and at most 1, not {weight!r}"
    elif how == "interpolate" and isinstance(weight, float | int) and not 0 <= weight <= 1:
        message = f"{weight!r} is not a share from 0 to 1 of the second in `with`"
    if message:
        yield Mistake(where, message, about=about)


def _check_how(stage: Stage, combine: Combine, path: KeyPath) -> Iterator[Mistake]:
    about = ((*path[:-1], "train"), (*path, "of"), (*path, "with"))
    if combine.how == "running-average" and stage.train is None:
        message = "running-average is over the evaluations of this stage, and it does not train; add `train`"
        yield Mistake((*path, "how"), message, about=about)
    if combine.how == "reset" and combine.of is None:
        message = "reset does not say which weights; give them, such as `of: layers[:4]` (all would undo everything)"
        yield Mistake((*path, "of"), message, about=about)
