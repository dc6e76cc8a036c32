"""Rules on what is learned: the task, the columns that it reads, and by what it is scored."""

from collections.abc import Iterator
from itertools import combinations

from alloytune.metrics import METRICS, Metric
from alloytune.recipe.nearest import nearest_word
from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.tasks import OF_ANSWERS, TaskWords
from alloytune.recipe.types.ending import Patience
from alloytune.recipe.types.joint import OwnView
from alloytune.recipe.types.recipe import Learner, Recipe, path_of
from alloytune.recipe.types.stage import Stage
from alloytune.recipe.types.task import Task, settings_of

TASK: KeyPath = ("task",)


def check_learning(recipe: Recipe) -> Iterator[Mistake]:
    """Find columns, metrics and regularisers that a task does not have, be it the recipe's or a stage's own."""
    tasks: dict[KeyPath, str | Task | None] = {TASK: recipe.task}
    tasks |= {(*path_of(learner), "task"): own.task for learner, own in recipe.learners.items()}
    unnamed = {path: task.named for path, task in tasks.items() if isinstance(task, Task) and len(task.named) != 1}
    for path, named in unnamed.items():
        message = f"it names {' and '.join(named) or 'no task'}; name exactly one, with a mapping of its settings"
        yield Mistake(path, message)
    if unnamed:
        return
    yield from _check_rows(recipe, TASK, ("data",))
    yield from _check_writing(recipe, TASK, ("data",))
    yield from _check_metric(recipe.metric, ("metric",), recipe)
    yield from _check_pooling(recipe)
    for learner, own in recipe.learners.items():
        yield from _check_own(recipe, learner, own)
    for index, stage in enumerate(recipe.stages):
        view, path = recipe.view(index), ("stages", index)
        if stage.accept is not None:
            yield from _check_metric(stage.accept.metric, (*path, "accept", "metric"), view)
        if isinstance(stage.until.patience, Patience):
            yield from _check_metric(stage.until.patience.metric, (*path, "until", "patience", "metric"), view)
        yield from _check_score(stage, (*path, "until", "score"), view)
        yield from _check_regularisers(stage, path, recipe.views(index))
        if recipe.activation_checkpointing:
            yield from _check_recomputing(stage, path)
        for seen in recipe.views(index):
            yield from _check_whole(seen, stage, path)


def _check_own(recipe: Recipe, learner: Learner, own: Stage | OwnView) -> Iterator[Mistake]:
    """What a stage or a view learns of its own has its columns, in its own data or in those around it."""
    number, view = learner
    around, seen, path = recipe.view(number) if view else recipe, recipe.view(number, view), path_of(learner)
    stage_task = ("stages", number, "task") if recipe.stages[number].task is not None else TASK
    task_path = (*path, "task") if own.task is not None else stage_task
    if own.data is not None:
        yield from _check_rows(seen, task_path, (*path, "data"))
    elif own.task is not None:
        yield from _check_borrowed(around, seen, task_path, "view" if view else "stage")
    if seen is not around:
        yield from _check_writing(seen, task_path, (*path, "data"))


def _check_rows(recipe: Recipe, task_path: KeyPath, path: KeyPath) -> Iterator[Mistake]:
    yield from _check_columns(recipe, task_path, path)
    yield from _check_stratify(recipe, task_path, path)


def _check_pooling(recipe: Recipe) -> Iterator[Mistake]:
    """A pooling is said for a head that reads one vector of a text."""
    views = [recipe, *(recipe.view(index) for index in range(len(recipe.stages)))]
    if recipe.architecture.pooling != "native" and not any(view.words.pools for view in views):
        message = f"the head of {recipe.task_name} reads no vector of a whole text; remove it"
        if recipe.task_name == "embedding":
            message = "vectors of texts are pooled as task.embedding.pooling says; give it there"
        yield Mistake(("architecture", "pooling"), message, about=(TASK,))


def _check_borrowed(recipe: Recipe, view: Recipe, path: KeyPath, learner: str) -> Iterator[Mistake]:
    """A task without data of its own finds its columns among those around it."""
    if not view.columns.keys() <= recipe.columns.keys():
        message = (
            f"{view.task_name} reads {describe_forms(view.words)}; the recipe's data has {', '.join(recipe.columns)}"
        )
        yield Mistake(path, f"{message}; give this {learner} `data`", about=(TASK, ("data",)))


def _check_columns(recipe: Recipe, task_path: KeyPath, path: KeyPath) -> Iterator[Mistake]:
    """Every column that is named is read, and has one meaning."""
    words, named = recipe.words, recipe.data.named
    if words.form(named) is None:
        keys = list(dict.fromkeys(key for form in words.forms for key in form.keys))
        foreign = [key for key in named if key not in keys]
        for key in foreign:
            message = f"the task {recipe.task_name} has no column {key!r}; it reads {describe_forms(words)}"
            yield Mistake((*path, key), message, at_key=True, about=(task_path,))
        if not foreign:
            message = f"{' and '.join(named)} do not go together; {recipe.task_name} reads {describe_forms(words)}"
            yield Mistake((*path, list(named)[-1]), message, at_key=True, about=(task_path,))
        return
    columns = recipe.columns
    for first, second in combinations(columns, 2):
        if columns[first] == columns[second]:
            key, other = (second, first) if second in named else (first, second)
            message = f"{columns[key]!r} is the {other} column, too; name another column"
            yield Mistake((*path, key), message, about=(task_path, (*path, other)))


def describe_forms(words: TaskWords) -> str:
    """Say the ways of writing a task's examples: `text, label and where wanted text_pair`."""
    return ", or ".join(
        ", ".join(form.required) + (f" and where wanted {', '.join(form.optional)}" if form.optional else "")
        for form in words.forms
    )


def _check_whole(recipe: Recipe, stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    """An update whose examples are held against each other needs two, and weights that stand still meanwhile."""
    if not recipe.words.undivided:
        return
    about: tuple[KeyPath, ...] = (TASK, (*path, "task"), ("batch",), ("micro_batch",))
    if recipe.batch < 2:
        message = f"{recipe.task_name} tells an example from the others of its update, and batch is 1; give 2 or more"
        yield Mistake((*path, "name"), message, about=about)
    has_views = stage.joint is not None and stage.joint.mode == "views"
    for key, is_there in {"mixout": stage.mixout, "joint": has_views}.items():
        if is_there and recipe.micro_batch is not None:
            message = (
                f"{key} changes weights for a pass, and micro_batch makes {recipe.task_name} pass twice; remove one"
            )
            yield Mistake((*path, key), message, about=about)


def _check_stratify(recipe: Recipe, task_path: KeyPath, path: KeyPath) -> Iterator[Mistake]:
    """Splits keep the shares of labels, where a row has one."""
    place: KeyPath = (*path, "split", "stratify")
    stratify = recipe.data.split.stratify
    if not recipe.words.stratifies and stratify:
        message = f"a row of {recipe.task_name} has no single label whose share could be kept; remove it"
        yield Mistake(place, message, about=(task_path,))
    elif isinstance(stratify, str) and stratify != recipe.columns.get("label"):
        label = recipe.columns.get("label")
        message = f"{stratify!r} is not the label column ({label!r}); splits keep the shares of labels only"
        yield Mistake(place, message, about=(task_path, (*path, "label")))


def _check_writing(recipe: Recipe, task_path: KeyPath, data_path: KeyPath) -> Iterator[Mistake]:
    """What is said of written answers is of use, and what is asked of a model has the source in it."""
    path, settings, defaults = (*task_path, recipe.task_name), recipe.task_settings, settings_of(recipe.task_name)
    prompt = settings.get("prompt")
    if prompt is not None and "{source}" not in prompt:
        yield Mistake((*path, "prompt"), "it has no {source}, where the source text goes; add it")
    if set(recipe.metrics) & set(OF_ANSWERS):
        return
    is_plain = "text" in recipe.columns
    for key in ("generate", "max_new_tokens", "bleu_words"):
        if settings.get(key) != defaults.get(key) and (is_plain or key == "bleu_words"):
            message = f"{key!r} is about written answers, and there are none; remove it"
            yield Mistake((*path, key), message, at_key=True, about=((*data_path, "text"), (*path, "generate")))


def _check_metric(metric: str | None, path: KeyPath, recipe: Recipe) -> Iterator[Mistake]:
    if metric is not None and metric not in recipe.metrics:
        yield Mistake(path, _no_metric(metric, recipe), about=(TASK,))


def _no_metric(metric: str, recipe: Recipe) -> str:
    known = recipe.metrics
    if metric in recipe.words.metrics:
        why = "`generate` is 0" if recipe.task_settings.get("generate") == 0 else "plain text has no answers"
        return f"{metric!r} is of written answers, and there are none: {why}; there are {', '.join(known)}"
    near = nearest_word(metric, known)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"{metric!r} is no metric of {recipe.task_name}; there are {', '.join(known)}{hint}"


def _check_score(stage: Stage, path: KeyPath, recipe: Recipe) -> Iterator[Mistake]:
    """Every score that would be enough can be reached, and has not been before the start."""
    score = stage.until.score
    if score is None:
        return
    if isinstance(score, float):
        yield from _check_value(METRICS[recipe.scored_by], score, path, (TASK, ("metric",)))
        return
    if not score:
        message = f"score names no metric; write a number such as 0.95, or {{{recipe.words.metrics[0]}: 0.95}}"
        yield Mistake(path, message)
    for metric, value in score.items():
        if metric not in recipe.metrics:
            yield Mistake((*path, metric), _no_metric(metric, recipe), at_key=True, about=(TASK,))
        else:
            yield from _check_value(METRICS[metric], value, (*path, metric), (TASK,))


def _check_value(metric: Metric, value: float, path: KeyPath, about: tuple[KeyPath, ...]) -> Iterator[Mistake]:
    if not metric.least < value <= metric.most:
        above = f"above {metric.least:g}" if metric.least > float("-inf") else ""
        most = f"at most {metric.most:g}" if metric.most < float("inf") else ""
        yield Mistake(path, f"{value:g} is not a number {' and '.join(filter(None, (above, most)))}", about=about)


def _check_recomputing(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    """Layers that compute again for the gradient must find the weights that they had."""
    has_views = stage.joint is not None and stage.joint.mode in ("views", "sample")
    for key, is_there in {"mixout": stage.mixout, "joint": has_views}.items():
        if is_there:
            message = (
                f"{key} changes weights for a pass, and activation_checkpointing calls layers after it; remove one"
            )
            yield Mistake((*path, key), message, about=(("activation_checkpointing",),))


def _check_regularisers(stage: Stage, path: KeyPath, views: list[Recipe]) -> Iterator[Mistake]:
    """What smooths or draws together means something in everything that a stage learns."""
    for key in ("label_smoothing", "r_drop"):
        without = [view.task_name for view in views if key not in view.words.regularises]
        if getattr(stage, key) and without:
            message = f"{key!r} means nothing in {without[0]}, whose answers are no choice of one label; remove it"
            yield Mistake((*path, key), message, at_key=True, about=(TASK,))
    without = [view.task_name for view in views if "r_drop" not in view.words.regularises]
    if stage.joint is not None and stage.joint.kl and without:
        message = f"'kl' means nothing in {without[0]}, whose outputs are no choice of one label; remove it"
        yield Mistake((*path, "joint", "kl"), message, at_key=True, about=(TASK,))
