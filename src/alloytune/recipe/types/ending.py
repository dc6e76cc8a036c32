"""The parts of a stage that say when it ends, and what happens then."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from alloytune.recipe.types.values import Gain, Metric, Multiplier, Part

ByMetric = Annotated[
    dict[str, float],
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}, "format": "metric values"}),
]


class Patience(Part):
    """The long form of `patience`, for a metric of its own."""

    metric: Metric = Field(description="What must get better.")
    evaluations: int = Field(ge=1, description="Evaluations in a row without a better value.")


class Until(Part):
    """When a stage ends: the first limit that is reached."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"epochs": 3}]})

    epochs: float | None = Field(None, gt=0, description="Passes over the training rows.")
    updates: int | None = Field(None, ge=1, description="Optimizer steps.")
    minutes: float | None = Field(
        None, gt=0, description="Training time; a run that it ends depends on the machine's speed."
    )
    flops: float | None = Field(
        None,
        gt=0,
        description=(
            "Floating-point operations of training, such as 1e15: those of the stage's first update are counted, with "
            "padding and all that may move in the stage, and later ones cost as much per token. Smaller passes pad "
            "less, so that the stage ends a little later."
        ),
    )
    score: float | ByMetric | None = Field(
        None,
        description=(
            "Validation score that is enough: of the recipe's metric, or by metric, the first one reached; needs "
            "another limit."
        ),
    )
    patience: Annotated[int, Field(ge=1)] | Patience | None = Field(
        None,
        description="Evaluations in a row without a better score of the recipe's metric; needs another limit.",
    )


class Accept(Part):
    """The test that a stage must pass to be kept."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"gain": "0.5 SE"}]})

    metric: Metric | None = Field(None, description="Validation score that counts; the recipe's metric where absent.")
    gain: Gain = Field(
        0.0,
        description=(
            "What the score must at least gain: a number, or standard errors of the difference between the two models "
            "on the same validation rows. Where less is better, a gain is a fall."
        ),
    )
    against: Literal["before", "best"] = Field(
        "before",
        description="What is compared with: the model before the stage, or the best that any kept stage has left.",
    )


class Retry(Part):
    """Roll back and train the stage again more slowly."""

    rate: Multiplier = Field("x0.3", description="What the rates are multiplied with at each new try.")
    times: int = Field(1, ge=1, description="New tries at most; then the stage is rolled back.")


class Otherwise(Part):
    """The long form of `otherwise`, for a retry with its own numbers."""

    retry: Retry = Field(description="Roll back and try again at lower rates.")
