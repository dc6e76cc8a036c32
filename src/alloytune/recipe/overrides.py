"""Values given beside the file: `--set stages.full.rate=1e-4`, and other options of the command line."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alloytune.errors import Problem
from alloytune.recipe import shape
from alloytune.recipe.nearest import nearest_word
from alloytune.recipe.places import KeyPath, Places, dotted, starts_with
from alloytune.recipe.yaml_text import load_value

OPTION = "command line"
SIGN = re.compile(r"[^\w\s~]")  # stands for itself, as a separator does; to YAML it would begin something else


def apply(
    value: dict[str, Any], places: Places, defaults: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[Problem]]:
    """Put given values over those of the file, and note in `places` where they come from.

    Returns the new value and a problem for each override that cannot be applied.
    """
    changed = copy.deepcopy(value)
    problems: list[Problem] = []
    settings = [(OPTION, path, given) for path, given in _leaves(defaults)]
    for text in overrides:
        try:
            settings.append((f"--set {text}", *_read(text, changed)))
        except ValueError as error:
            problems.append(Problem(f"--set {text}", None, None, "", str(error)))
    for source, path, given in settings:
        try:
            _require_once(path, places)
            _put(changed, path, given)
            places.origins[path] = source
        except ValueError as error:
            problems.append(Problem(source, None, None, dotted(path), str(error)))
    return changed, problems


def _leaves(values: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Give every value of a nested mapping with its path; None is an option that was not given."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not shape.takes_any_key((*path, key)):
            yield from _leaves(value, (*path, key))
        elif value is not None:
            yield (*path, key), value


def _read(text: str, value: dict[str, Any]) -> tuple[KeyPath, Any]:
    """Read `stages.full.rate=1e-4` into its path and its value."""
    keys, equals, given = text.partition("=")
    if not equals or not keys.strip():
        raise ValueError(f"{text!r} is not KEY=VALUE; write --set stages.0.rate=1e-4")
    path: KeyPath = ()
    rest = keys.strip()
    while rest:
        if shape.takes_any_key(path):  # all that follows is one key, such as `attention.query` in `rates`
            path, rest = (*path, re.sub(r'^\["(.*)"\]$', r"\1", rest)), ""
        elif match := re.match(r"\[?([^.\[\]]+)\]?\.?", rest):
            path, rest = (*path, _step(match[1], path, value)), rest[match.end() :]
        else:
            raise ValueError(f"{keys.strip()!r} is not a path of keys; write one such as stages.0.rate")
    return path, given if SIGN.fullmatch(given) else load_value(given)


def _step(word: str, path: KeyPath, value: Any) -> str | int:
    """Give the key or index that a word of a path means; a stage's name stands for its index."""
    for part in path:
        value = value[part] if isinstance(value, list) and isinstance(part, int) else (value or {}).get(part)
    kinds = {node.get("type") for node in shape.at(path)}
    if "array" not in kinds or ("object" in kinds and not isinstance(value, list)):
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"nothing stands below '{dotted(path)}', which is {value!r}; end the path there")
        return word
    items = value if isinstance(value, list) else []
    if word.isdecimal() and int(word) < len(items):
        return int(word)
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if word in names:
        return names.index(word)
    known = [name for name in names if isinstance(name, str)]
    if not items:
        raise ValueError(f"there is no stage {word!r}; the recipe has no list of stages")
    near = nearest_word(word, known)
    meant = f"did you mean {near!r}?" if near else f"there are {', '.join(known)}, or 0 to {len(items) - 1}"
    raise ValueError(f"there is no stage {word!r}; {meant}")


def _require_once(path: KeyPath, places: Places) -> None:
    for before, source in places.origins.items():
        if starts_with(before, path):
            raise ValueError(f"the value is given twice, here and by {source!r}; drop one of them")


def _put(value: Any, path: KeyPath, given: Any) -> None:
    """Set a value, making the mappings above it where they are absent."""
    for part in path[:-1]:
        if isinstance(value, dict) and value.get(str(part)) is None:
            value[part] = {}
        value = value[part]
        if not isinstance(value, dict | list):
            raise ValueError(f"nothing can stand below {part!r}, which is {value!r}; give a mapping there")
    value[path[-1]] = given
