"""The parts of a stage that say which weights move when, by what score, and how they are mixed with earlier ones."""

from typing import Literal

from pydantic import ConfigDict, Field

from alloytune.recipe.types.values import Interval, Part, Rate, ScoreName, SelectionText, Share, Threshold


class Mixout(Part):
    """The long form of `mixout`."""

    share: Share = Field(description="Share of the elements that stand at their old value in a pass.")
    to: Literal["pretrained", "stage-start"] = Field("pretrained", description="Which old value.")


class Combine(Part):
    """Weights of the model mixed with those it had after earlier stages, or at the start; chosen on validation."""

    how: Literal["interpolate", "average", "running-average", "greedy-soup", "sum-of-changes", "reset"] = Field(
        description=(
            "The way of combining. interpolate: the first of `with` moved toward the second by the share `weight` "
            "(WiSE-FT, Wortsman et al. 2022). average: the mean of all in `with` (uniform soup). greedy-soup: from the "
            "best in `with` on, each next one is averaged in unless the score falls (Wortsman et al. 2022). "
            "sum-of-changes: the pretrained weights plus `weight` times what each in `with` has changed (task "
            "arithmetic, Ilharco et al. 2023). running-average: the mean over the evaluations of this stage (SWA, "
            "Izmailov et al. 2018), or with `weight` an exponential one. reset: the values of the one in `with` for "
            "the weights of `of`."
        )
    )
    with_: list[str] = Field(
        [],
        alias="with",
        description=(
            "Names of earlier stages, for the model as it stood after them; `pretrained`; or this stage, for the model "
            "as it stands before combining. Equal ones count once."
        ),
    )
    weight: float | list[float] | Literal["validate"] | None = Field(
        None,
        description=(
            "interpolate: share of the second; sum-of-changes: factor of every change, or a list with one for each; "
            "validate (the default of both) tries 0 to 1 in tenths and takes what scores best on validation. "
            "running-average: share of every new evaluation; where absent, all count alike."
        ),
    )
    of: SelectionText | None = Field(
        None,
        description="The weights to combine, in whole tensors; all that have moved where absent.",
    )


class Scaled(Part):
    """A rate by tensor, as in Auto-RGN (Lee et al. 2023): the largest rate times score / largest score.

    Pretrained tensors are compared; the head, adapters and what `rates` names keep their whole rate.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"scale": "rgn"}]})

    scale: ScoreName = Field(description="The score that rates follow.")
    largest: Rate | Literal["auto"] = Field("auto", description="Learning rate where the score is largest.")


class Scoring(Part):
    """How scores are measured when a stage begins; they feed `top`, `bottom` and `rate: {scale: ...}`."""

    batches: int = Field(8, ge=2, description="Batches of the training split that gradients are taken of.")
    rank: int = Field(8, ge=1, description="Leading directions that lowrank_misfit leaves out.")
    after: str | None = Field(
        None,
        description=(
            "Earlier stage after which weight_change looks at the model; where absent, the model as the stage finds it."
        ),
    )


class Rotate(Part):
    """What takes turns: while its turn lasts it moves, and then it rests until it is chosen again."""

    choose: SelectionText = Field(
        description=(
            "What moves in a turn, chosen anew for each: `random(2, by=layer)` draws, `cycle(by=layer)` takes the next "
            "one, `top(rgn, 25%)` scores again; several may be joined by |."
        )
    )
    every: Interval = Field(description="How long a turn lasts.")
    state: Literal["keep", "reset"] = Field(
        "reset",
        description=(
            "The optimizer's memory of what rests: dropped, so that its next turn begins as a first one, or kept until "
            "then. Where single elements take turns, a whole tensor's is dropped when other elements of it move."
        ),
    )


class ByTurns(Part):
    """The long form of `train`, for weights that take turns (LISA, Pan et al. 2024; BAdam, Luo et al. 2024; HFT)."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"rotate": '{choose: "random(2, by=layer)", every: 20 updates}'}]}
    )

    always: SelectionText | None = Field(None, description="What moves in every turn.")
    rotate: Rotate = Field(description="What takes turns.")


class Unfreeze(Part):
    """Gradual unfreezing (Howard and Ruder 2018).

    A stage begins with the head and the first layer, and one more layer of what `train` selects joins every epoch, with
    the adapters in it. Layers count from the input to the top; below them are the embeddings.
    """

    from_: Literal["top", "bottom"] = Field(
        "top", alias="from", description="Whether the top layer is the first and the embeddings are the last, or not."
    )
    one: Literal["epoch"] | None = Field(None, description="One more layer per epoch; so it is where nothing is said.")
    every: Interval | None = Field(None, description="Another interval after which one more layer joins.")


class FreezeWhen(Part):
    """Freezing the lowest layers for the rest of a stage once they have settled (after AutoFreeze, Liu et al. 2021)."""

    change: Threshold = Field(
        description=(
            "What a layer's change from one check to the next must stay under, as a part of its norm. The embeddings "
            "count as the lowest layer, and a layer freezes when all below it have, adapters too; the top one never "
            "does."
        )
    )
    check: Share = Field(0.1, description="Share of the stage from one check to the next.")
