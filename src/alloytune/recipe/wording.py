"""Say pydantic's errors in our own words, with the bad value, what is allowed, and the nearest valid word."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from alloytune.recipe import shape
from alloytune.recipe.nearest import nearest_word, unknown_key
from alloytune.recipe.places import KeyPath, Mistake

ABSENT = object()


def mistakes_in(error: ValidationError, value: Any) -> list[Mistake]:
    """Translate every error that pydantic found in a value; one mistake for each path and reason."""
    found: dict[tuple[KeyPath, str], Mistake] = {}
    details = [(detail, *_path(detail, value)) for detail in error.errors(include_url=False)]
    explained = {path for detail, path, _ in details if detail["type"] == "value_error"}  # by our own words
    for detail, path, at_key in details:
        is_explained = path in explained and detail["type"] != "value_error"
        if not is_explained and not _explained_below(detail, path, value):
            mistake = _mistake(detail, path, at_key, value)
            found.setdefault((path, mistake.message), mistake)
    return list(found.values())


def without_hidden(mistakes: list[Mistake], value: Any) -> list[Mistake]:
    """Leave out what is missing only because it was misspelt."""
    hidden = {path for mistake in mistakes for path in mistake.hides}
    return [mistake for mistake in mistakes if mistake.path not in hidden or look_up(value, mistake.path) is not ABSENT]


def look_up(value: Any, path: KeyPath) -> Any:
    """Give what stands at a path, or ABSENT."""
    for part in path:
        inside = part in value if isinstance(value, Mapping) else _is_index(value, part)
        if not inside:
            return ABSENT
        value = value[part]
    return value


def shown(value: Any) -> str:
    """Write a value as it would stand in a recipe, cut where it is long."""
    match value:
        case None:
            return "an empty value"
        case str():
            text = repr(value)
        case float() if not math.isfinite(value):
            text = f".{value}".replace(".-", "-.")
        case _:
            text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def allowed(nodes: list[shape.Node]) -> str:
    """Say what a key takes: `a whole number of at least 1`."""
    phrases = " or ".join(dict.fromkeys(_phrase(node) for node in nodes))
    return f"{phrases}, the only choice" if all("const" in node for node in nodes) else phrases


def _path(detail: ErrorDetails, value: Any) -> tuple[KeyPath, bool]:
    """Give the path within the value, without the names that pydantic adds for unions and for keys."""
    path: KeyPath = ()
    for part in detail["loc"]:
        is_missing = detail["type"] == "missing" and part == detail["loc"][-1]
        if is_missing or look_up(value, (*path, part)) is not ABSENT:
            path = (*path, part)
    return path, detail["loc"][-1] == "[key]"


def _explained_below(detail: ErrorDetails, path: KeyPath, value: Any) -> bool:
    """Leave out 'not one of these words' where a mapping was given and may be: its own mistakes tell more."""
    if detail["type"] in ("missing", "extra_forbidden", "value_error") or detail["type"].endswith("length"):
        return False
    given, nodes = look_up(value, path), shape.at(path)
    if isinstance(given, list):
        return any("items" in node for node in nodes) and bool(given)
    return isinstance(given, Mapping) and (bool(shape.keys(path)) or (bool(given) and shape.takes_any_key(path)))


def _mistake(detail: ErrorDetails, path: KeyPath, at_key: bool, value: Any) -> Mistake:
    match detail["type"]:
        case "extra_forbidden":
            return unknown_key(path)
        case "missing":
            return Mistake(path, f"{path[-1]!r} is missing; it takes {allowed(shape.at(path))}")
        case "value_error":
            return Mistake(path, _own_message(detail, value, path), at_key)
        case "string_too_short" if at_key:
            return Mistake(path, "an empty key is not a selection", at_key)
        case _:
            return Mistake(path, _refusal(look_up(value, path), shape.at(path)))


def _own_message(detail: ErrorDetails, value: Any, path: KeyPath) -> str:
    message = str(detail["ctx"]["error"])
    text = look_up(value, path)
    if isinstance(text, str) and (text.count("(") > text.count(")") or text.count("[") > text.count("]")):
        message += "; inside {...} an expression with a comma or a bracket needs quotes"
    return message


def _refusal(value: Any, nodes: list[shape.Node]) -> str:
    if value == "" and allowed(nodes) == "text":
        return "the text is empty; write some, or remove the key"
    return f"{shown(value)} is not {allowed(nodes)}{_hint(value, nodes)}"


def _hint(value: Any, nodes: list[shape.Node]) -> str:
    """Give the remedy where the value shows what was meant."""
    words = [word for node in nodes for word in (*node.get("enum", ()), node.get("const")) if word]
    kinds = {node.get("type") for node in nodes} | {node.get("format") for node in nodes}
    if isinstance(value, str) and words and (near := nearest_word(value, words, cutoff=0.6)):
        return f"; did you mean {near!r}?"
    if kinds & {"number", "integer", "share"} and (number := _number(value)) is not None:
        if not math.isfinite(number):
            limits = "".join({shape.bounds(node) for node in nodes if node.get("type") == "number"})
            return f"; write a finite number{limits}"
        if isinstance(value, str):
            return "; write it without quotes"
    if isinstance(value, str) and "boolean" in kinds and value.lower() in ("yes", "no", "on", "off"):
        return f"; write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    if isinstance(value, float) and "integer" in kinds and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, list) and "selection" in kinds and all(isinstance(item, str) for item in value):
        return f'; join with |: "{" | ".join(value)}"'
    if isinstance(value, str) and "integer" in kinds and (match := re.match(r"\d+", value)):
        return f"; write {match[0]}"
    if not isinstance(value, str | None | Mapping | list) and kinds == {"string", None}:
        return f"; put it in quotes: '{shown(value)}'"
    return ""


def _phrase(node: shape.Node) -> str:
    if "format" in node:
        return shape.FORMATS[node["format"]]
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    if "const" in node:
        return repr(node["const"])
    match node["type"]:
        case "boolean":
            return "true or false"
        case "integer":
            return f"a whole number{shape.bounds(node).replace(' at', ' of at', 1)}"
        case "number":
            return f"a number{shape.bounds(node)}" if shape.bounds(node) else "a finite number"
        case "array":
            return "a list with at least one entry"
        case "object":
            return f"a mapping such as {{{_example(node)}}}"
    return "text"


def _example(node: shape.Node) -> str:
    if "examples" in node:
        return ", ".join(f"{key}: {value}" for key, value in node["examples"][0].items())
    names = list(node["properties"])
    return ", ".join(f"{name}: ..." for name in names[:3])


def _is_index(value: Any, part: str | int) -> bool:
    return isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value)


def _number(value: Any) -> float | None:
    """Give the number that a value is, or that its text says; None where it is none."""
    if not isinstance(value, str | float):
        return None
    try:
        return float(value)
    except ValueError:
        return None
