"""The recipe: the whole description of a run. Every field carries its own documentation.

These types say what is allowed; `alloytune.recipe.read` reads a file into them and reports every mistake at once.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    WithJsonSchema,
    model_serializer,
)

from alloytune.expression import parse

Metric = Literal["accuracy", "macro_f1"]
WatchedMetric = Literal["accuracy", "macro_f1", "loss"]
PRETRAINED = "pretrained"  # what a snapshot's name may be beside a stage's


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


def _check_gain(gain: float | str) -> float | str:
    read_gain(gain)
    return gain


def read_gain(gain: float | str) -> tuple[float, bool]:
    """Read 0.01 or `0.5 SE` into its number, and whether that counts standard errors."""
    if not isinstance(gain, str):
        return gain, False
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*SE", gain)
    if not match:
        raise ValueError(f"{gain!r} is not a gain; write a number such as 0.01, or standard errors such as '0.5 SE'")
    return float(match[1]), True


def _check_threshold(text: str) -> str:
    read_threshold(text)
    return text


def read_threshold(text: str) -> float:
    """Read `below 1e-3` into its number."""
    match = re.fullmatch(r"below\s+(\d*\.?\d+(?:[eE][-+]?\d+)?)", text)
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a threshold above 0; write one such as below 1e-3")
    return float(match[1])


def _check_multiplier(text: str) -> str:
    read_multiplier(text)
    return text


def read_multiplier(text: str) -> float:
    """Read `x0.3` into its number."""
    match = re.fullmatch(r"x\s*(0?\.\d+)", text)
    if not match or not 0 < float(match[1]) < 1:
        raise ValueError(f"{text!r} is not a multiplier between 0 and 1; write one such as x0.3")
    return float(match[1])


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
ScoreName = Literal["rgn", "snr", "fisher", "gradient", "weight_change", "spectral_snr", "lowrank_misfit"]
Interval = Annotated[
    str, AfterValidator(_check_interval), WithJsonSchema({"type": "string", "minLength": 1, "format": "interval"})
]
Cadence = Annotated[
    str, AfterValidator(_check_cadence), WithJsonSchema({"type": "string", "minLength": 1, "format": "cadence"})
]
Gain = Annotated[
    float | str,
    AfterValidator(_check_gain),
    WithJsonSchema(
        {
            "anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^-?\d+(\.\d+)?\s*SE$"}],
            "format": "gain",
        }
    ),
]
Threshold = Annotated[
    str,
    AfterValidator(_check_threshold),
    WithJsonSchema({"type": "string", "pattern": r"^below\s+\d*\.?\d+([eE][-+]?\d+)?$", "format": "threshold"}),
]
Multiplier = Annotated[
    str,
    AfterValidator(_check_multiplier),
    WithJsonSchema({"type": "string", "pattern": r"^x\s*0?\.\d+$", "format": "multiplier"}),
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
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank), for large ranks (Kalajdzievski 2023).")
    dora: bool = Field(False, description="Learn the length of every column beside its direction (Liu et al. 2024).")
    pissa: bool = Field(
        False,
        description=(
            "Start from the largest singular values, which are taken out of the base weights (Meng et al. 2024)."
        ),
    )
    plus: float | None = Field(
        None,
        gt=0,
        description="The second factor's rate is so many times the first's; 16 in LoRA+ (Hayou et al. 2024).",
    )
    on: SelectionText = Field(
        "attention | mlp", description="The linear layers that get an adapter; the head never does."
    )


class Vera(Part):
    """Two trained vectors around random matrices that all layers share (Kopiczko et al. 2024), through PEFT."""

    rank: int = Field(256, ge=1, description="Rank of the random matrices.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    on: SelectionText = Field("attention | mlp", description="The linear layers that get an adapter.")


class Ia3(Part):
    """One trained factor for each output of a layer, or each input of `mlp.down` (Liu et al. 2022), through PEFT."""

    on: SelectionText = Field(
        "attention.key | attention.value | mlp.down", description="The linear layers that get an adapter."
    )


class Oft(Part):
    """Trained rotations of a layer's inputs (Qiu et al. 2023), through PEFT."""

    block: int = Field(32, ge=2, description="Inputs that are rotated together; must divide the inputs of every layer.")
    on: SelectionText = Field("attention | mlp", description="The linear layers that get an adapter.")


class Shira(Part):
    """A random choice of single elements of the weights (Bhardwaj et al. 2024), through PEFT."""

    rank: int = Field(8, ge=1, description="As many elements move as LoRA of this rank would train.")
    on: SelectionText = Field("attention | mlp", description="The linear layers that get an adapter.")


class Bottleneck(Part):
    """Small two-layer networks behind output projections.

    On `attention | mlp` they stand where Houlsby et al. 2019 put them, on `mlp` alone where Pfeiffer et al. 2021 do.
    """

    reduction: int = Field(16, ge=1, description="Width of the layer divided by the width of the bottleneck.")
    activation: str = Field("relu", description="Nonlinearity between the two layers, by transformers' name.")
    placement: Literal["sequential", "parallel"] = Field(
        "sequential", description="On the layer's output, or beside the layer on its input (He et al. 2022)."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    on: SelectionText = Field("attention | mlp", description="Blocks whose output projection gets an adapter.")


class Attach(Part):
    """An adapter that a stage adds: exactly one kind."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"lora": "{rank: 8}"}]})

    lora: Lora | None = Field(None, description="LoRA, with rsLoRA, DoRA, PiSSA and LoRA+.")
    vera: Vera | None = Field(None, description="VeRA; beside no other adapter.")
    ia3: Ia3 | None = Field(None, description="(IA)3.")
    oft: Oft | None = Field(None, description="OFT; not on GPT-2's transposed layers.")
    shira: Shira | None = Field(None, description="SHiRA; not on GPT-2's transposed layers.")
    bottleneck: Bottleneck | None = Field(None, description="Bottleneck adapters; they cannot be merged.")
    folder: str | None = Field(
        None,
        description=(
            "Folder of an adapter that was trained elsewhere, as PEFT saves it; kind, rank and layers come from there, "
            "a head does not."
        ),
    )
    name: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9_]*$",
        description="What `adapter.NAME`, `merge` and `drop` call it; the kind where absent.",
        json_schema_extra={"format": "name"},
    )
    stack: bool = Field(False, description="Whether it may stand on layers that carry another adapter.")

    @property
    def kinds(self) -> list[str]:
        """Give the kinds that are named; one, when the recipe is sound."""
        return [kind for kind in KINDS if getattr(self, kind) is not None]

    @property
    def called(self) -> str:
        """Give the adapter's name."""
        return self.name or self.kinds[0]

    @property
    def on(self) -> str:
        """Give the selection that it goes on; "all" where its folder says on what."""
        return getattr(getattr(self, self.kinds[0]), "on", "all")

    @model_serializer(mode="wrap")
    def _without_other_kinds(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in written(self).items() if value is not None}


KINDS = ("lora", "vera", "ia3", "oft", "shira", "bottleneck", "folder")


class Score(Part):
    """Validation scores that are good enough to end a stage: the first one reached."""

    accuracy: float | None = Field(None, gt=0, le=1, description="Accuracy at least so high.")
    macro_f1: float | None = Field(None, gt=0, le=1, description="Macro-F1 at least so high.")
    loss: float | None = Field(None, gt=0, description="Loss at most so high.")


class Patience(Part):
    """The long form of `patience`, for a metric of its own."""

    metric: WatchedMetric = Field(description="What must get better; of loss, less is better.")
    evaluations: int = Field(ge=1, description="Evaluations in a row without a better value.")


class Until(Part):
    """When a stage ends: the first limit that is reached."""

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
            "all that may move in the stage, and later ones cost as much per token."
        ),
    )
    score: Annotated[float, Field(gt=0, le=1)] | Score | None = Field(
        None,
        description="Validation score that is enough: of the recipe's metric, or by metric; needs another limit.",
    )
    patience: Annotated[int, Field(ge=1)] | Patience | None = Field(
        None,
        description="Evaluations in a row without a better score of the recipe's metric; needs another limit.",
    )


class Accept(Part):
    """The test that a stage must pass to be kept."""

    metric: Metric | None = Field(None, description="Validation score that counts; the recipe's metric where absent.")
    gain: Gain = Field(
        0.0,
        description=(
            "What the score must at least gain: a number, or standard errors of the difference between the two models "
            "on the same validation rows."
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


class Adamw(Part):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    beta1: float = Field(0.9, ge=0, lt=1, description="What an update keeps of the gradients' average.")
    beta2: float = Field(0.999, ge=0, lt=1, description="What an update keeps of the squared gradients' average.")
    bits: Literal[32, 8] = Field(32, description="Bits per number of its memory; 8 through bitsandbytes.")


class Sgd(Part):
    """Stochastic gradient descent; wants rates about a hundred times AdamW's. Its decay is part of the gradient."""

    momentum: float = Field(0.9, ge=0, lt=1, description="What an update keeps of the one before.")
    nesterov: bool = Field(False, description="Look ahead along the momentum.")


class Adafactor(Part):
    """Adam whose memory is a row and a column (Shazeer and Stern 2018); the rate is relative to a weight's size."""

    beta2_decay: float = Field(-0.8, le=0, description="Power of the update's number by which old gradients fade.")


class Lion(Part):
    """Signs of the momentum (Chen et al. 2023); wants a third to a tenth of AdamW's rate."""

    beta1: float = Field(0.9, ge=0, lt=1, description="Weight of the momentum against the gradient in an update.")
    beta2: float = Field(0.99, ge=0, lt=1, description="What the momentum keeps of itself.")
    bits: Literal[32, 8] = Field(32, description="Bits per number of its memory; 8 through bitsandbytes.")


class Muon(Part):
    """Orthogonal updates of matrices inside the body, sized as AdamW's (Jordan et al. 2024); AdamW for the rest."""

    momentum: float = Field(0.95, ge=0, lt=1, description="What an update keeps of the one before.")
    nesterov: bool = Field(True, description="Look ahead along the momentum.")


class Galore(Part):
    """Adam within the gradient's largest directions (Zhao et al. 2024), for matrices inside; AdamW for the rest."""

    rank: int = Field(128, ge=1, description="Directions kept; matrices that have no more get AdamW.")
    every: int = Field(200, ge=1, description="Updates from one choice of directions to the next.")
    scale: float = Field(0.25, gt=0, description="What the rate of these matrices is multiplied with.")


class Apollo(Part):
    """Gradients scaled by a small Adam's (Zhu et al. 2024), for matrices inside; AdamW for the rest."""

    rank: int = Field(128, ge=1, description="Size of the small Adam; matrices that have no more get AdamW.")
    every: int = Field(200, ge=1, description="Updates from one random projection to the next.")
    scale: float = Field(1.0, gt=0, description="The update is multiplied with its root.")
    per: Literal["channel", "tensor"] = Field("channel", description="What has a scaling of its own.")


class ScheduleFree(Part):
    """AdamW whose weights are averaged instead of its rate lowered (Defazio et al. 2024)."""

    beta1: float = Field(0.9, gt=0, lt=1, description="How near the average gradients are taken.")
    beta2: float = Field(0.999, ge=0, lt=1, description="What an update keeps of the squared gradients' average.")


class Optimizer(Part):
    """The long form of `optimizer`: exactly one, with its options."""

    adamw: Adamw | None = Field(None, description="AdamW.")
    sgd: Sgd | None = Field(None, description="SGD.")
    adafactor: Adafactor | None = Field(None, description="Adafactor.")
    lion: Lion | None = Field(None, description="Lion.")
    muon: Muon | None = Field(None, description="Muon.")
    galore: Galore | None = Field(None, description="GaLore.")
    apollo: Apollo | None = Field(None, description="APOLLO; needs the extra `optimizers`.")
    schedule_free: ScheduleFree | None = Field(None, description="Schedule-free AdamW.")


class Clip(Part):
    """The long form of `clip`."""

    norm: float = Field(gt=0, description="Largest gradient norm.")
    per: Literal["all", "group"] = Field(
        "all",
        description="One norm over all that moves, or one each for embeddings, layers, head, adapter and the rest.",
    )


class Mixout(Part):
    """The long form of `mixout`."""

    share: Share = Field(description="Share of the elements that stand at their old value in a pass.")
    to: Literal["pretrained", "stage-start"] = Field("pretrained", description="Which old value.")


OptimizerWord = Literal["adamw", "sgd", "adafactor", "lion", "muon", "galore", "apollo", "schedule_free"]


def read_optimizer(given: OptimizerWord | Optimizer) -> tuple[str, dict[str, Any]]:
    """Give an optimizer's name and all its options, from its word or its long form."""
    long = Optimizer.model_validate({given: {}}) if isinstance(given, str) else given
    ((kind, options),) = long.model_dump(exclude_none=True).items()
    return kind, options


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

    A stage begins with the head, adapters and the first layer, and one more layer of what `train` selects joins every
    epoch. Layers count from the input to the top; below them are the embeddings.
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
            "count as the lowest layer, and a layer freezes when all below it have; the top one never does."
        )
    )
    check: Share = Field(0.1, description="Share of the stage from one check to the next.")


class Stage(Part):
    """One phase of training: which weights move, how fast, until when, and what happens then."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="A short word; names the stage's folder.",
        json_schema_extra={"format": "word"},
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
    train: SelectionText | ByTurns | None = Field(
        None,
        description=(
            "The selection that moves; everything else stays as it is. A mapping lets weights take turns. Only a stage "
            "that combines has none."
        ),
    )
    unfreeze: Unfreeze | None = Field(None, description="Let the layers of `train` join one after another.")
    freeze_when: FreezeWhen | None = Field(None, description="Freeze the lowest layers once they have settled.")
    rate: Rate | Literal["auto"] | Scaled = Field(
        "auto",
        description=(
            "Learning rate of everything that moves and has no rate of its own; auto takes a starting value from what "
            "moves, the model's size, and what an earlier stage has trained, and finds the rate from there in a short "
            "test on training rows (in stages of about 107 updates and more); a mapping lets it follow a score."
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
            "Multiplies `rate` once in the top layer, twice in the one below, and so on down to the embeddings; head, "
            "adapter and what has a rate in `rates` keep theirs (Clark et al. 2020, Bao et al. 2022)."
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
    weight_decay: float = Field(0.01, ge=0, description="Decay per update and rate; never on biases and norms.")
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
    until: Until = Field(Until(epochs=3), description="When the stage ends.")
    evaluate: Interval = Field("1 epoch", description="How often validation is scored within the stage.")
    keep: Literal["best", "last"] = Field("best", description="Weights to keep: of the best evaluation or the last.")
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


def retry_of(stage: Stage) -> Retry | None:
    """Give how a stage that fails is tried again; None where it is not."""
    match stage.otherwise:
        case Otherwise(retry=retry):
            return retry
        case "retry":
            return Retry()
    return None


class Repeat(Part):
    """A block of stages that is carried out several times; its stages are named `NAME-1`, `NAME-2` and so on."""

    times: int = Field(ge=1, le=100, description="How often.")
    stages: list[Stage] = Field(
        min_length=1,
        description="The stages of the block; a stage named in `combine` is that of the same round.",
    )


class Repetition(Part):
    """An entry of `stages` that stands for several."""

    repeat: Repeat = Field(description="The block, and how often it is carried out.")


# Keys of a stage that mean something without training; all others would be ignored.
WITHOUT_TRAINING = frozenset({"name", "attach", "merge", "drop", "train", "combine", "accept", "otherwise"})


class RecipeHead(Part):
    """All of a recipe but its stages."""

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


class Recipe(RecipeHead):
    """The whole description of a run."""

    stages: list[Stage] = Field(min_length=1, description="The stages, in order.")


def _kind_of_entry(value: Any) -> str:
    return "(repeat)" if isinstance(value, Mapping) and "repeat" in value else "(stage)"


class WrittenRecipe(RecipeHead):
    """The whole description of a run."""  # as it is written: blocks that repeat are not yet written out

    stages: list[
        Annotated[
            Annotated[Stage, Tag("(stage)")] | Annotated[Repetition, Tag("(repeat)")], Discriminator(_kind_of_entry)
        ]
    ] = Field(min_length=1, description="The stages, in order; `repeat: {times: 3, stages: [...]}` stands for several.")
