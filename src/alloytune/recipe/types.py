"""The recipe: the whole description of a run. Every field carries its own documentation.

These types say what is allowed; `alloytune.recipe.read` reads a file into them and reports every mistake at once.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from alloytune.selection import parse

Metric = Literal["accuracy", "macro_f1"]


def _check_selection(text: str) -> str:
    try:
        parse(text)
    except RecursionError:
        raise ValueError(f"the selection '{text[:40]}...' is too deep to read; shorten it") from None
    return text


def _read_share(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return float(match[1]) / 100
    return value


def _check_interval(text: str) -> str:
    if read_interval(text)[1] == "minute":
        raise ValueError(
            f"{text!r} would depend on the machine's speed; write '1 epoch', '0.5 epochs' or '200 updates'"
        )
    return text


def _check_cadence(text: str) -> str:
    try:
        read_interval(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an interval; write '5 minutes', '1 epoch' or '200 updates'") from None
    return text


def read_interval(text: str) -> tuple[float, str]:
    """Read `20 updates`, `0.5 epochs` or `5 minutes` into its number and unit: `update`, `epoch` or `minute`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s+(update|epoch|minute)s?\s*", text)
    if not match or float(match[1]) <= 0 or (match[2] == "update" and not float(match[1]).is_integer()):
        raise ValueError(f"{text!r} is not an interval; write '1 epoch', '0.5 epochs' or '200 updates'")
    return float(match[1]), match[2]


# `format` tells the schema, the reference page and the error messages what kind of text or number a key takes.
SelectionText = Annotated[
    str, AfterValidator(_check_selection), WithJsonSchema({"type": "string", "minLength": 1, "format": "selection"})
]
Rate = Annotated[float, Field(gt=0), WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "format": "rate"})]
Share = Annotated[
    float,
    BeforeValidator(_read_share),
    Field(ge=0, lt=1),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
                {"type": "string", "pattern": r"^\s*\d{1,2}(\.\d+)?\s*%\s*$"},
            ],
            "format": "share",
        }
    ),
]
Interval = Annotated[
    str, AfterValidator(_check_interval), WithJsonSchema({"type": "string", "minLength": 1, "format": "interval"})
]
Cadence = Annotated[
    str, AfterValidator(_check_cadence), WithJsonSchema({"type": "string", "minLength": 1, "format": "cadence"})
]


class Part(BaseModel):
    """Base of every part of a recipe: strict about keys and types, and not changed once it is read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
        str_min_length=1,
    )


class Split(Part):
    """How validation and test are cut from the training rows where no file gives them."""

    validation: Share = Field(0.1, description="Share of the rows for validation, such as 10%.")
    test: Share = Field(0.1, description="Share of the rows for the test at the end.")
    stratify: bool | str = Field(
        True,
        description="Keep the share of each label in every split: true, false, or the label column's name.",
    )


class Data(Part):
    """Where the examples are and what is done to them before training."""

    train: str | None = Field(None, description="CSV, TSV, JSONL or Parquet file; relative to the recipe's folder.")
    validation: str | None = Field(None, description="File with validation rows; cut from train where absent.")
    test: str | None = Field(None, description="File with test rows; cut from train where absent.")
    text: str = Field("text", description="Column with the text.")
    text_pair: str | None = Field(None, description="Column with a second text, for tasks on pairs.")
    label: str = Field("label", description="Column with the label.")
    encoding: str = Field("utf-8", description="Encoding of CSV, TSV and JSONL files.")
    rows: int | None = Field(
        None,
        ge=10,
        description="Use at most so many rows of `train`, drawn in the labels' proportion; given splits stay whole.",
    )
    repair: bool = Field(True, description="Repair broken characters (ftfy).")
    near_duplicates: bool = Field(True, description="Keep near-duplicates within one split.")
    split: Split = Field(Split(), description="How missing splits are cut.")


class Lora(Part):
    """Low-rank adapters beside linear layers (Hu et al. 2021), through PEFT."""

    rank: int = Field(8, ge=1, description="Rank of the two factors.")
    alpha: float | None = Field(None, gt=0, description="Scale: alpha / rank. Twice the rank where absent.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    on: SelectionText = Field(
        "attention | mlp", description="The linear layers that get an adapter; the head never does."
    )


class Bottleneck(Part):
    """Small two-layer networks behind output projections (Houlsby et al. 2019, Pfeiffer et al. 2021)."""

    reduction: int = Field(16, ge=1, description="Width of the layer divided by the width of the bottleneck.")
    activation: str = Field("relu", description="Nonlinearity between the two layers, by transformers' name.")
    placement: Literal["sequential", "parallel"] = Field(
        "sequential", description="On the layer's output, or beside the layer on its input."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    on: SelectionText = Field("attention | mlp", description="Blocks whose output projection gets an adapter.")


class Attach(Part):
    """The adapter that a stage adds: exactly one kind."""

    lora: Lora | None = Field(None, description="LoRA.")
    bottleneck: Bottleneck | None = Field(None, description="Bottleneck adapters; they cannot be merged.")


class Until(Part):
    """When a stage ends: the first limit that is reached."""

    epochs: float | None = Field(None, gt=0, description="Passes over the training rows.")
    updates: int | None = Field(None, ge=1, description="Optimizer steps.")
    minutes: float | None = Field(
        None, gt=0, description="Training time; a run that it ends depends on the machine's speed."
    )
    patience: int | None = Field(
        None, ge=1, description="Evaluations in a row without a better score; needs another limit beside it."
    )


class Accept(Part):
    """The test that a stage must pass to be kept."""

    metric: Metric | None = Field(None, description="Validation score that counts; the recipe's metric where absent.")
    gain: float = Field(
        0.0,
        description="What the score must at least gain on the model before the stage.",
    )


class Retry(Part):
    """Roll back and train the stage again more slowly."""

    factor: float = Field(0.3, gt=0, lt=1, description="What the rates are multiplied with at each new try.")
    times: int = Field(1, ge=1, description="New tries at most; then the stage is rolled back.")


class Otherwise(Part):
    """The long form of `otherwise`, for a retry with its own numbers."""

    retry: Retry = Field(description="Roll back and try again at lower rates.")


class Stage(Part):
    """One phase of training: which weights move, how fast, until when, and what happens then."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="A short word; names the stage's folder.",
        json_schema_extra={"format": "word"},
    )
    attach: Attach | None = Field(None, description="Adapter to add before training.")
    merge: bool = Field(False, description="Fold the attached adapter into the base weights before training.")
    train: SelectionText = Field(description="The selection that moves; everything else stays as it is.")
    rate: Rate | Literal["auto"] = Field(
        "auto",
        description=(
            "Learning rate of everything that moves and has no rate of its own; auto takes a starting value from what "
            "moves, the model's size, and what an earlier stage has trained."
        ),
    )
    rates: dict[SelectionText, Rate | Literal["auto"]] = Field(
        {},
        description="Learning rates by selection; the first that holds a weight counts.",
        examples=[{"head": 1e-3, "layers[-2:]": 1e-4}],
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Course of the rate after the warm-up; linear and cosine end at 0."
    )
    warmup: Share = Field(0.06, description="Share of the stage in which the rate rises from 0.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay; never on biases and norms.")
    clip: float | None = Field(
        1.0, gt=0, description="Largest gradient norm over all that moves; null for no clipping."
    )
    until: Until = Field(Until(epochs=3), description="When the stage ends.")
    evaluate: Interval = Field("1 epoch", description="How often validation is scored within the stage.")
    keep: Literal["best", "last"] = Field("best", description="Weights to keep: of the best evaluation or the last.")
    accept: Accept | None = Field(None, description="The test to pass; where absent, the stage is always kept.")
    otherwise: Literal["rollback", "retry", "skip", "stop"] | Otherwise = Field(
        "rollback",
        description=(
            "What happens to a stage that fails `accept`. rollback: the weights from before it are put back and the "
            "next stage goes on from there. retry: roll back and train again at lower rates. skip: roll back and "
            "leave the next stage out, too. stop: roll back and train no further stage."
        ),
    )


class Recipe(Part):
    """The whole description of a run."""

    about: str | None = Field(None, description="What the recipe does and when to use it.")
    model: str | None = Field(
        None, description="Hub id, folder, or package:NAME/PATH for a model inside an installed package."
    )
    task: Literal["classification"] = Field("classification", description="What is learned.")
    data: Data = Field(Data(), description="Where the examples are.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Decides the split, the head's first weights, the batches and dropout."
    )
    metric: Metric = Field("macro_f1", description="Validation score that chooses the best weights.")
    batch: int = Field(32, ge=1, description="Examples per update.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Examples per forward pass, to save memory; the result is the same. The whole batch where absent.",
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
    stages: list[Stage] = Field(min_length=1, description="The stages, in order.")
