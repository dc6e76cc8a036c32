"""The part of a stage that weighs full, partial and adapter training against each other in one objective."""

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema

from alloytune.recipe.types.data import Data
from alloytune.recipe.types.task import Task, TaskName
from alloytune.recipe.types.values import Interval, Part, SelectionText, read_interval

View = Literal["full", "partial", "adapter"]
VIEWS: tuple[View, ...] = ("full", "partial", "adapter")
Unit = Literal["share", "update", "epoch"]
FOUND = ("validate", "gradnorm", "uncertainty")  # weights that training finds

_NUMBER = r"\d*\.?\d+(?:[eE][-+]?\d+)?"
_PIECE = re.compile(rf"({_NUMBER})(?:\s*->\s*({_NUMBER})(?:\s+(linear|cosine))?)?(?:\s+until\s+(\S.*))?")
_EXAMPLE = (
    f"write a number such as 0.3, a course such as '0 -> 1 cosine' or '1 until 40%, 0', or one of {', '.join(FOUND)}"
)


class WeightPiece(NamedTuple):
    """A piece of a weight's course: from one value to another, up to a place in the stage; the last has no end."""

    first: float
    last: float
    shape: Literal["linear", "cosine"]
    until: float | None
    unit: Unit | None


def read_weight(weight: float | str) -> tuple[WeightPiece, ...]:
    """Read 0.3, `0 -> 1 cosine` or `1 until 40%, 1 -> 0 until 60%, 0` into its pieces; what is found begins at 1."""
    if weight in FOUND:
        weight = 1.0
    if not isinstance(weight, str):
        return (WeightPiece(weight, weight, "linear", None, None),)
    pieces = tuple(_read_piece(text.strip(), weight) for text in weight.split(","))
    ends = [piece.until for piece in pieces[:-1] if piece.until is not None]
    if len(ends) < len(pieces) - 1 or pieces[-1].until is not None:
        raise ValueError(f"in {weight!r} every piece but the last ends with an 'until'; {_EXAMPLE}")
    units = {piece.unit for piece in pieces[:-1]}
    if len(units) > 1:
        raise ValueError(f"{weight!r} measures in several units; write all ends in one of %, updates or epochs")
    if ends != sorted(set(ends)):
        raise ValueError(f"the ends in {weight!r} do not rise from piece to piece")
    if units & {"update", "epoch"} and pieces[-1].first != pieces[-1].last:
        raise ValueError(f"the last piece of {weight!r} has no end in updates; write the ends in %, or hold it still")
    return pieces


def is_constant(weight: float | str) -> bool:
    """Tell whether a weight is the same throughout the stage."""
    pieces = read_weight(weight)
    return weight not in FOUND and len(pieces) == 1 and pieces[0].first == pieces[0].last


def _read_piece(text: str, whole: str) -> WeightPiece:
    match = re.fullmatch(_PIECE, text)
    if not match:
        raise ValueError(f"{whole!r} is not a weight; {_EXAMPLE}")
    first, last = float(match[1]), float(match[2] or match[1])
    until, unit = _read_end(match[4], whole) if match[4] else (None, None)
    return WeightPiece(first, last, "cosine" if match[3] == "cosine" else "linear", until, unit)


def _read_end(text: str, whole: str) -> tuple[float, Unit]:
    if share := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        if not 0 < float(share[1]) < 100:
            raise ValueError(f"{text!r} in {whole!r} is not within the stage; write a share above 0% and below 100%")
        return float(share[1]) / 100, "share"
    try:
        amount, unit = read_interval(text)
    except ValueError:
        unit = "minute"
    if unit == "minute":
        raise ValueError(f"{text!r} in {whole!r} is not an end; write one such as 40%, 200 updates or 1 epoch")
    return amount, "update" if unit == "update" else "epoch"


def _check_weight(weight: float | str) -> float | str:
    read_weight(weight)
    return weight


Weight = Annotated[
    Annotated[float, Field(ge=0)] | str,
    AfterValidator(_check_weight),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "enum": list(FOUND)},
                {"type": "string", "pattern": rf"^{_NUMBER}(\s*->\s*{_NUMBER}(\s+(linear|cosine))?)?(\s+until\s.+)?$"},
            ],
            "format": "weight",
        }
    ),
]


class OwnView(Part):
    """A view that learns something of its own, in mode `views`: its head, its rows, its batches; the body is one.

    Its loss is the mean over its own targets of the update. What is validated, kept and saved is what the stage learns.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"task": "language_modelling", "data": "{train: texts.csv}"}]}
    )

    weight: Weight = Field(1.0, description="Weight of the view's loss.")
    task: TaskName | Task | None = Field(
        None,
        description=(
            "What the view learns, where it is not what the stage does; it has a head of its own. Without `data` it "
            "reads the stage's rows, in batches of its own."
        ),
    )
    data: Data | None = Field(
        None, description="Where the view's examples are, if not the stage's; a test split is not cut from them."
    )


class Joint(Part):
    """Full, partial and adapter training in one weighted objective: alpha L_full + beta L_partial + gamma L_adapter.

    What `of` selects is partial, the rest of the base moves in full only. docs/joint.md says when to use which mode.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"mode": "update", "full": 0.3, "adapter": 1}]})

    mode: Literal["update", "views", "sample", "route"] = Field(
        "update",
        description=(
            "What the weights are. update: factors of the rates, in one pass: of the rest of the base `full`, of the "
            "partial weights `full` + `partial`, of adapters `adapter`, of the head 1. views: weights of the losses of "
            "different functions: the base without adapters, the partial weights over a frozen base, the adapters over "
            "a base that this loss does not move. sample: probabilities with which an update belongs to one of these. "
            "route: priors; in every update the full weights or the adapter of a layer moves, whichever scores better "
            "(MoLF)."
        ),
    )
    full: Weight | OwnView | None = Field(None, description="Weight of full training (alpha), or what its view learns.")
    partial: Weight | OwnView | None = Field(
        None, description="Weight of partial training (beta), or what its view learns; needs `of`."
    )
    adapter: Weight | OwnView | None = Field(
        None, description="Weight of adapter training (gamma), or what its view learns."
    )
    of: SelectionText | None = Field(None, description="The partial weights, among those of the base that move.")
    every: Interval | None = Field(
        None, description="sample: how long a draw holds; 1 update where absent. A draw takes the weights of its start."
    )
    over: Literal["pretrained", "stage-start"] | None = Field(
        None,
        description=(
            "views: the values of the frozen base that the partial weights are seen over; those of the stage's start "
            "where absent."
        ),
    )
    kl: float = Field(
        0.0,
        ge=0,
        description=(
            "views: weight of the divergence between each two views that learn the same, the mean of both "
            "Kullback-Leibler ways."
        ),
    )

    @property
    def weights(self) -> dict[View, float | str]:
        """Give the weights that are set, by view."""
        given = {view: getattr(self, view) for view in VIEWS}
        weights = {view: it.weight if isinstance(it, OwnView) else it for view, it in given.items()}
        return {view: weight for view, weight in weights.items() if weight is not None}

    @property
    def own(self) -> dict[View, OwnView]:
        """Give the views that say what they learn."""
        given = {view: getattr(self, view) for view in VIEWS}
        return {view: it for view, it in given.items() if isinstance(it, OwnView)}

    @property
    def rests(self) -> list[View]:
        """Give the views whose weight is 0 for a while."""
        pieces = {view: read_weight(weight) for view, weight in self.weights.items()}
        return [view for view, course in pieces.items() if any(piece.first == piece.last == 0 for piece in course)]

    @property
    def found(self) -> dict[View, str]:
        """Give the views whose weights training finds, and by what."""
        return {view: weight for view, weight in self.weights.items() if isinstance(weight, str) and weight in FOUND}
