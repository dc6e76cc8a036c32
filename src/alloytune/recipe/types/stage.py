"""One phase of training: which weights move, how fast, until when, and what happens then."""

from typing import Annotated, Literal

from pydantic import Field

from alloytune.recipe.types.adapter import Attach
from alloytune.recipe.types.choosing import ByTurns, Combine, FreezeWhen, Mixout, Scaled, Scoring, Unfreeze
from alloytune.recipe.types.data import Data
from alloytune.recipe.types.ending import Accept, Otherwise, Retry, Until
from alloytune.recipe.types.joint import Joint
from alloytune.recipe.types.optimizer import Clip, Optimizer, OptimizerWord
from alloytune.recipe.types.task import Task, TaskName
from alloytune.recipe.types.values import Interval, Part, Rate, SelectionText, Share


class Stage(Part):
    """One phase of training: which weights move, how fast, until when, and what happens then."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="A short word; names the stage's folder.",
        json_schema_extra={"format": "word"},
    )
    task: TaskName | Task | None = Field(
        None,
        description=(
            "What this stage learns, where it is not the recipe's task: the body carries over, each task has its head. "
            "Without `data` it reads the recipe's rows."
        ),
    )
    data: Data | None = Field(
        None, description="Where this stage's examples are, if not the recipe's; a test split is not cut from them."
    )
    attach: Attach | Annotated[list[Attach], Field(min_length=1)] | None = Field(
        None, description="Adapter to add before training, or a list of several on layers of their own."
    )
    merge: bool | str = Field(
        False,
        description="Fold adapters into the base weights before training: all that are attached, or the one named.",
    )
    drop: bool | str = Field(
        False, description="Remove adapters before training: all that are attached, or the one named."
    )
    reinit: SelectionText | None = Field(
        None,
        description=(
            "Weights to draw anew before training, as the model's class does where none are pretrained: upper layers "
            "that have learned something else than the task needs (Zhang et al. 2021)."
        ),
    )
    train: SelectionText | ByTurns | None = Field(
        None,
        description=(
            "The selection that moves; everything else stays as it is. A mapping lets weights take turns. Only a stage "
            "that combines has none."
        ),
    )
    unfreeze: Unfreeze | None = Field(None, description="Let the layers of `train` join one after another.")
    freeze_when: FreezeWhen | None = Field(None, description="Freeze the lowest layers once they have settled.")
    joint: Joint | None = Field(
        None, description="Full, partial and adapter training of what `train` selects in one weighted objective."
    )
    rate: Rate | Literal["auto"] | Scaled = Field(
        "auto",
        description=(
            "Learning rate of everything that moves and has no rate of its own; auto takes a starting value from what "
            "moves, the model's size, and what an earlier stage has trained, and finds the rate from there in a short "
            "test on training rows (in stages of about 107 updates and more, of twice as many where pretrained weights "
            "and adapters both move), and lowers it where it broke the model; a mapping lets it follow a score."
        ),
    )
    rates: dict[SelectionText, Rate | Literal["auto"]] = Field(
        {},
        description="Learning rates by selection; the first that holds a weight counts.",
        examples=[{"head": 1e-3, "layers[-2:]": 1e-4}],
    )
    score: Scoring = Field(Scoring(), description="How scores are measured.")
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description=(
            "Multiplies `rate` once in the top layer, twice in the one below, and so on down to the embeddings, of "
            "adapters too; the head and what has a rate in `rates` keep theirs (Clark et al. 2020, Bao et al. 2022)."
        ),
    )
    schedule: Literal["constant", "linear", "cosine", "slanted", "stable-then-decay"] | None = Field(
        None,
        description=(
            "Course of the rate after the warm-up; linear where absent, constant under schedule_free. linear and "
            "cosine end at 0, slanted begins and ends at 1/32, stable-then-decay falls to 0 in its last fifth."
        ),
    )
    warmup: Share | None = Field(
        None, description="Share of the stage in which the rate rises; 6% where absent, 10% under slanted."
    )
    optimizer: OptimizerWord | Optimizer = Field("adamw", description="What makes updates out of gradients.")
    state: Literal["keep", "reset"] = Field(
        "reset",
        description="The optimizer's memory of weights that the stage before moved as well: carried on, or begun anew.",
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Decay per update and rate; never on biases and norms, nor of embeddings to zero."
    )
    decay_to: Literal["zero", "pretrained", "stage-start"] = Field(
        "zero",
        description=(
            "Where decay leads: to zero, to the pretrained values (to zero where there are none, as in head and "
            "adapter), or to the values with which the stage began."
        ),
    )
    clip: Annotated[float, Field(gt=0)] | Clip | None = Field(
        1.0, description="Largest gradient norm over all that moves; null for no clipping."
    )
    dropout: Share | None = Field(
        None, description="Dropout throughout the model in this stage; the model's own where absent."
    )
    mixout: Share | Mixout | None = Field(
        None,
        description="Share of the moving pretrained weights' elements that stand at their pretrained value in a pass.",
    )
    label_smoothing: Share = Field(0.0, description="Share of each target that is spread over all labels.")
    r_drop: float = Field(
        0.0, ge=0, description="Weight of the divergence between two passes over a batch; twice the cost (R-Drop)."
    )
    cache: bool | Literal["auto"] = Field(
        "auto",
        description=(
            "Whether what the layers below all that moves give is computed once per example and read back; auto: where "
            "there are such layers, and a stage may pass over its rows twice and is not ended by time alone. It saves "
            "time and changes results by rounding alone: frozen layers draw no dropout either way."
        ),
    )
    until: Until = Field(Until(epochs=3), description="When the stage ends.")
    evaluate: Interval = Field("1 epoch", description="How often validation is scored within the stage.")
    keep: Literal["best", "last"] = Field(
        "best",
        description="Weights to keep: of the last evaluation that is not behind the best by more than one standard"
        " error of their difference on the validation rows, or of the last evaluation.",
    )
    combine: Combine | None = Field(
        None, description="Mix the weights with earlier ones, after training if the stage trains."
    )
    accept: Accept | None = Field(None, description="The test to pass; where absent, the stage is always kept.")
    otherwise: Literal["rollback", "retry", "skip", "stop"] | Otherwise = Field(
        "rollback",
        description=(
            "What happens to a stage that fails `accept`. rollback: the weights from before it are put back and the "
            "next stage goes on from there. retry: roll back and train again at lower rates. skip: roll back and "
            "leave the next stage out, too. stop: roll back and train no further stage."
        ),
    )

    @property
    def attaches(self) -> list[Attach]:
        """Give what is added, as a list."""
        return [self.attach] if isinstance(self.attach, Attach) else self.attach or []

    @property
    def trains(self) -> dict[tuple[str, ...], str]:
        """Give what moves by its keys: one selection, or those of weights that take turns."""
        match self.train:
            case ByTurns(always=always, rotate=rotate):
                texts = {("train", "always"): always, ("train", "rotate", "choose"): rotate.choose}
                return {key: text for key, text in texts.items() if text is not None}
            case str(text):
                return {("train",): text}
        return {}

    @property
    def trained(self) -> str:
        """Say what moves, in the recipe's own words."""
        by_turns = f", {self.train.rotate.choose} in turns" if isinstance(self.train, ByTurns) else ""
        always = self.train.always if isinstance(self.train, ByTurns) else self.train
        return f"{always or ''}{by_turns}".removeprefix(", ")


WITHOUT_TRAINING = frozenset({"name", "attach", "merge", "drop", "train", "combine", "score", "accept", "otherwise"})


def leaves_rates_open(stage: Stage) -> bool:
    """Tell whether any rate of a stage is still to be found."""
    common = stage.rate.largest if isinstance(stage.rate, Scaled) else stage.rate
    return stage.train is not None and "auto" in (common, *stage.rates.values())


def may_be_lost(stage: Stage) -> bool:
    """Tell whether a stage may have to go back to what was before it: else it is kept in any case."""
    return stage.accept is not None or leaves_rates_open(stage)


def retry_of(stage: Stage) -> Retry | None:
    """Give how a stage that fails is tried again; None where it is not."""
    match stage.otherwise:
        case Otherwise(retry=retry):
            return retry
        case "retry":
            return Retry()
    return None
