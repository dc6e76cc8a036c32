"""The recipe: the whole description of a run. Every field carries its own documentation.

These types say what is allowed; `alloytune.recipe.read` reads a file into them and reports every mistake at once.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from alloytune.recipe.tasks import OF_ANSWERS, TASKS, TaskWords
from alloytune.recipe.types.architecture import Architecture
from alloytune.recipe.types.data import Data
from alloytune.recipe.types.joint import OwnView, View
from alloytune.recipe.types.stage import Stage
from alloytune.recipe.types.task import Task, TaskName, settings_of
from alloytune.recipe.types.values import Cadence, Metric, Part


class Repeat(Part):
    """A block of stages that is carried out several times; its stages are named `NAME-1`, `NAME-2` and so on."""

    times: int = Field(ge=1, le=100, description="How often.")
    stages: list[Stage] = Field(
        min_length=1,
        description="The stages of the block; a stage named in `combine` or `score` is that of the same round.",
    )


class Repetition(Part):
    """An entry of `stages` that stands for several."""

    repeat: Repeat = Field(description="The block, and how often it is carried out.")


Purpose = Literal["baseline", "quality", "economy", "compact", "robustness"]


class RecipeHead(Part):
    """All of a recipe but its stages."""

    about: str | None = Field(None, description="What the recipe does and when to use it.")
    purpose: Purpose | None = Field(
        None,
        description=(
            "What the recipe is for, by which `alloytune recipes` groups it: a baseline to begin with, quality, "
            "economy of time and memory, a compact result beside the base model, or robustness."
        ),
    )
    model: str | None = Field(
        None, description="Hub id, folder, GGUF file, or package:NAME/PATH for a model inside an installed package."
    )
    task: TaskName | Task = Field(
        "classification", description="What is learned: a task's name, or a mapping with its settings."
    )
    architecture: Architecture = Field(Architecture(), description="What is changed in the model beforehand.")
    data: Data = Field(Data(), description="Where the examples are.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Decides the split, the head's first weights, the batches and dropout."
    )
    metric: Metric | None = Field(
        None, description="Validation score that chooses the best weights; the task's first where absent."
    )
    batch: int = Field(32, ge=1, description="Examples per update.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description=(
            "Examples per forward pass at most, to save memory; the result is the same. Passes are cut by their tokens "
            "in any case."
        ),
    )
    activation_checkpointing: bool = Field(
        False,
        description=(
            "Whether layers keep their inputs alone and compute the rest again for the gradient: less memory, in a "
            "third to a half more time; the result is the same."
        ),
    )
    max_length: int | None = Field(
        None, ge=4, description="Tokens per example at most; the model's own limit where absent."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of matrix products; auto takes bfloat16 where the processor has it."
    )
    checkpoint: Cadence = Field(
        "5 minutes", description="How often a running stage is saved, so that a killed run goes on from there."
    )

    @property
    def task_name(self) -> str:
        """Give the task's name."""
        return self.task.named[0] if isinstance(self.task, Task) else self.task

    @property
    def task_settings(self) -> dict[str, Any]:
        """Give the task's settings, defaults filled in."""
        return settings_of(self.task)

    @property
    def words(self) -> TaskWords:
        """Give what a recipe may say of the task."""
        return TASKS[self.task_name]

    @property
    def columns(self) -> dict[str, str]:
        """Give the columns that are read, by the keys of `data`."""
        return self.words.columns(self.data.named)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Give the metrics that there are for the task, its settings and the way its examples are written."""
        words, settings = self.words, self.task_settings
        form = words.form(self.data.named) or words.forms[0]
        unscored = OF_ANSWERS if settings.get("generate") == 0 else form.unscored
        return tuple(metric for metric in words.metrics if metric not in unscored)

    @property
    def scored_by(self) -> str:
        """Give the metric that counts."""
        return self.metric or self.words.metrics[0]

    @property
    def stratifies(self) -> bool:
        """Tell whether splits keep the share of each label."""
        wanted = self.data.split.stratify
        return self.words.stratifies if wanted is None else bool(wanted)


SPLITS = ("train", "validation", "test")
Learner = tuple[int, View | None]  # a stage by its number, or one of its views


def path_of(learner: Learner) -> tuple[str | int, ...]:
    """Give where in a recipe a learner stands."""
    number, view = learner
    return ("stages", number, "joint", view) if view else ("stages", number)


class Recipe(RecipeHead):
    """The whole description of a run."""

    stages: list[Stage] = Field(min_length=1, description="The stages, in order.")

    def view(self, number: int, view: View | None = None) -> "Recipe":
        """Give the recipe with what a stage learns, or a view of its joint objective, in the place of its own."""
        stage = self.stages[number]
        own = _own_view(stage, view)
        of_stage = _learning(self, stage)
        return of_stage if own is None else _learning(of_stage, own)

    def views(self, number: int) -> list["Recipe"]:
        """Give what a stage learns, and what views of it learn beside that, each as `view` does."""
        return [self.view(number), *(self.view(number, view) for view in self.beside(number))]

    @property
    def learners(self) -> dict[Learner, Stage | OwnView]:
        """Give all that may learn something of its own, in order: every stage, followed by its views."""
        found: dict[Learner, Stage | OwnView] = {}
        for number, stage in enumerate(self.stages):
            found[number, None] = stage
            found |= {(number, view): own for view, own in (stage.joint.own if stage.joint else {}).items()}
        return found

    def with_data(self, data: Mapping[Learner, Data]) -> "Recipe":
        """Give the recipe with other data in learners that have their own."""
        stages = [*self.stages]
        for (number, view), its in data.items():
            stage = stages[number]
            if view is None:
                stages[number] = stage.model_copy(update={"data": its})
                continue
            assert stage.joint is not None
            own = stage.joint.own[view].model_copy(update={"data": its})
            stages[number] = stage.model_copy(update={"joint": stage.joint.model_copy(update={view: own})})
        return self.model_copy(update={"stages": stages})

    def learning_of(self, number: int, view: View | None = None) -> str:
        """Name what a stage or a view learns: by the first that learns it, and nothing for what the recipe does."""
        own = self.view(number, view)
        if (own.task, own.data) == (self.task, self.data):
            return ""
        others = ((self.stages[n].name + (f".{v}" if v else ""), self.view(n, v)) for n, v in self.learners)
        return next(name for name, seen in others if (seen.task, seen.data) == (own.task, own.data))

    @property
    def learnings(self) -> dict[str, Learner]:
        """Give what is learned beside what the recipe learns, by name, each with the first that learns it."""
        found: dict[str, Learner] = {}
        for learner in self.learners:
            found.setdefault(self.learning_of(*learner), learner)
        return {name: learner for name, learner in found.items() if name}

    @property
    def files(self) -> dict[str, str]:
        """Give every table that is read, by split; those of a learner with its own as `LEARNER/SPLIT`."""
        every = {"": self.data} | {f"{name}/": self.view(*learner).data for name, learner in self.learnings.items()}
        files = {f"{name}{split}": getattr(data, split) for name, data in every.items() for split in SPLITS}
        return {name: file for name, file in files.items() if file is not None}

    def beside(self, number: int) -> dict[View, str]:
        """Give the views of a stage that learn something else than the stage does, and what."""
        joint, of_stage = self.stages[number].joint, self.learning_of(number)
        found = {view: self.learning_of(number, view) for view in joint.own} if joint else {}
        return {view: name for view, name in found.items() if name != of_stage}


def _own_view(stage: Stage, view: View | None) -> OwnView | None:
    return stage.joint.own.get(view) if stage.joint and view else None


def _learning(recipe: Recipe, own: Stage | OwnView) -> Recipe:
    """Give the recipe with a stage's or view's task and data in the place of its own."""
    if own.data is not None:
        others = {"task": own.task, "metric": None} if own.task is not None else {}
        return recipe.model_copy(update={"data": own.data, **others})
    if own.task is None:
        return recipe
    seen = recipe.model_copy(update={"task": own.task, "metric": None})
    read = {key for form in seen.words.forms for key in form.keys}
    split = recipe.data.split.model_copy(update={"stratify": None})
    foreign = dict.fromkeys(recipe.data.named.keys() - read)
    return seen.model_copy(update={"data": recipe.data.model_copy(update={**foreign, "split": split})})


def _kind_of_entry(value: Any) -> str:
    return "(repeat)" if isinstance(value, Mapping) and "repeat" in value else "(stage)"


class WrittenRecipe(RecipeHead):
    """The whole description of a run."""  # as it is written: blocks that repeat are not yet written out

    stages: list[
        Annotated[
            Annotated[Stage, Tag("(stage)")] | Annotated[Repetition, Tag("(repeat)")], Discriminator(_kind_of_entry)
        ]
    ] = Field(min_length=1, description="The stages, in order; `repeat: {times: 3, stages: [...]}` stands for several.")
