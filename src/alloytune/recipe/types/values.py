"""What a key of a recipe may hold: texts and numbers of every kind, how each is read, and the base of all parts."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from alloytune.expression import parse
from alloytune.metrics import METRICS

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
# Which of them a task has is checked beside the task.
Metric = Annotated[str, WithJsonSchema({"type": "string", "enum": list(METRICS), "format": "metric"})]
Verbatim = Annotated[str, StringConstraints(strip_whitespace=False)]  # blanks at its ends count
Before = Annotated[str, StringConstraints(strip_whitespace=False, min_length=0)]  # a text before others; may be none
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
