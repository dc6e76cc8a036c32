"""The rules across fields of a recipe: what each value alone may be, but not together."""

from collections.abc import Iterator

from alloytune.recipe.adapters import check_adapters
from alloytune.recipe.choices import check_choices, check_scored_stages
from alloytune.recipe.combining import check_combining
from alloytune.recipe.joint import check_joint, check_views
from alloytune.recipe.learning import check_learning
from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.speed import check_speed
from alloytune.recipe.stage_tasks import check_stage_tasks, without_test
from alloytune.recipe.turns import check_turns
from alloytune.recipe.types.data import Data
from alloytune.recipe.types.recipe import Recipe, path_of
from alloytune.recipe.types.stage import WITHOUT_TRAINING, Stage, retry_of
from alloytune.recipe.types.values import PRETRAINED


def check(recipe: Recipe) -> Iterator[Mistake]:
    """Find every combination that is impossible, or in which a setting would be ignored."""
    wrong = list(check_learning(recipe))
    yield from wrong
    if not any(mistake.path[-1] == "task" for mistake in wrong):  # else nobody knows what a stage learns
        yield from check_stage_tasks(recipe)
        yield from check_views(recipe)
    yield from _check_split(recipe.data, ("data",))
    if recipe.micro_batch is not None and recipe.micro_batch > recipe.batch:
        message = f"{recipe.micro_batch} is more than batch ({recipe.batch}); a micro-batch is a part of the batch"
        yield Mistake(("micro_batch",), message, about=(("batch",),))
    yield from _check_names(recipe.stages)
    for index, stage in enumerate(recipe.stages):
        yield from _check_stage(stage, ("stages", index))
    for learner, own in recipe.learners.items():
        if own.data is not None:
            yield from _check_split(without_test(own.data), (*path_of(learner), "data"))
    yield from check_adapters(recipe.stages)
    yield from check_combining(recipe.stages)
    yield from check_scored_stages(recipe.stages)
    yield from check_speed(recipe.stages)


def _check_split(data: Data, of: KeyPath) -> Iterator[Mistake]:
    """What is cut from the training rows must leave some, and validation must come from somewhere."""
    path: KeyPath = (*of, "split")
    validation = data.split.validation if data.validation is None else 0.0
    test = data.split.test if data.test is None else 0.0
    about = ((*path, "validation"), (*path, "test"), ("data", "validation"), ("data", "test"))
    if validation + test >= 1:
        message = f"validation ({validation:.4g}) and test ({test:.4g}) together leave no rows to train on"
        yield Mistake(path, f"{message}; they must add up to less than 100%", about=about)
    if data.validation is None and validation == 0:
        message = (
            "0 leaves no validation rows, and every stage is judged on them; give a share, or a file as data.validation"
        )
        yield Mistake((*path, "validation"), message, about=about)


def _check_names(stages: list[Stage]) -> Iterator[Mistake]:
    """A stage's name names its folder, so no two are the same."""
    first: dict[str, int] = {}
    for index, stage in enumerate(stages):
        if stage.name in first:
            number = first[stage.name]
            message = f"{stage.name!r} is the name of an earlier stage, too; every stage needs its own"
            yield Mistake(("stages", index, "name"), message, about=(("stages", number, "name"),))
        first.setdefault(stage.name, index)
        if stage.name == PRETRAINED:
            message = f"{PRETRAINED!r} names the model as it came; choose another word for this stage"
            yield Mistake(("stages", index, "name"), message)


def _check_stage(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    """What must hold within one stage."""
    if stage.accept is None and "otherwise" in stage.model_fields_set:
        message = "'otherwise' never happens without `accept`; add `accept: {gain: 0}`, or remove it"
        yield Mistake((*path, "otherwise"), message, at_key=True, about=((*path, "accept"),))
    yield from _check_training(stage, path)
    yield from _check_until(stage, (*path, "until"))
    yield from check_choices(stage, path)
    yield from check_turns(stage, path)
    yield from check_joint(stage, path)


def _check_training(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    """A stage trains or combines; without training, what is about training would be ignored."""
    if stage.train is not None:
        return
    if stage.combine is None:
        message = (
            "'train' is missing; it takes a selection such as 'layers[-2:] | head' (only a stage with `combine` can "
            "do without)"
        )
        yield Mistake((*path, "train"), message, about=((*path, "combine"),))
        return
    for key in Stage.model_fields:
        if key in stage.model_fields_set - WITHOUT_TRAINING:
            message = f"{key!r} does nothing in a stage that has no `train`; remove it, or add `train`"
            yield Mistake((*path, key), message, at_key=True, about=((*path, "train"),))
    if retry_of(stage) is not None:
        message = "a stage without `train` ends the same at every try; write rollback, skip or stop"
        yield Mistake((*path, "otherwise"), message, about=((*path, "train"), (*path, "accept")))


def _check_until(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    """A stage needs a limit that is surely reached."""
    until = stage.until
    sure = ("epochs", "updates", "minutes", "flops")
    about = tuple((*path, key) for key in (*sure, "score", "patience"))
    if any(getattr(until, key) is not None for key in sure):
        return
    unsure = [key for key in ("patience", "score") if getattr(until, key) is not None]
    if not unsure:
        message = "the stage has no end; give epochs, updates, minutes or flops, such as {epochs: 3}"
    else:
        message = (
            f"{' and '.join(unsure)} alone may never end the stage; give epochs, updates, minutes or flops beside it, "
            f"such as {{epochs: 10, {unsure[0]}: {'2' if unsure[0] == 'patience' else '0.95'}}}"
        )
    yield Mistake(path, message, about=about)
