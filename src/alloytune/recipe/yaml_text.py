"""Read YAML 1.2 text into plain values and the places where they stand."""

import warnings
from collections.abc import Mapping
from io import StringIO
from itertools import accumulate
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarbool import ScalarBoolean

from alloytune.errors import Problem, RecipeError
from alloytune.recipe.places import KeyPath, Place, Places
from alloytune.recipe.yaml_errors import Broken, explain

MOST_VALUES = 20_000
DEEPEST = 50


class _Constructor(RoundTripConstructor):
    """YAML 1.2 knows no dates: `2026-01-01` is text, like every other plain word."""


for _tag in ("timestamp", "value"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda _, node: node.value)


def load(text: str, source: str) -> tuple[dict[str, Any], Places]:
    """Read a recipe's text; raises RecipeError where it is not one mapping in YAML 1.2."""
    try:
        value = _parse(text)
        if value is None:
            raise Broken("the recipe is empty; it needs at least `stages:`", 1, 1)
        if not isinstance(value, Mapping):
            kind = "a list" if isinstance(value, CommentedSeq) else "a single value"
            raise Broken(f"the recipe is {kind}; it must be a mapping with keys such as `model:` and `stages:`", 1, 1)
        places = Places(source, {(): Place((1, 1), _start(value, (1, 1)))})
        return _Plain(places.marks).read(value, ()), places
    except Broken as error:
        raise RecipeError([Problem(source, error.line, error.column, "", error.message)]) from None


def load_value(text: str) -> Any:
    """Read one value, as given to `--set`; raises ValueError that says what is wrong."""
    try:
        return _Plain({(): Place((1, 1), (1, 1))}).read(_parse(text), ())
    except Broken as error:
        raise ValueError(error.message) from None


def dump(value: dict[str, Any]) -> str:
    """Write plain values as YAML 1.2, in the order they have."""
    yaml = YAML(typ="rt")
    yaml.width = 120
    stream = StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def _parse(text: str) -> Any:
    """Parse text; every way in which ruamel can fail becomes Broken."""
    depths = accumulate((letter in "[{") - (letter in "]}") for letter in text)
    if max(depths, default=0) > 2 * DEEPEST:  # ruamel's time grows with the square of the depth
        raise Broken(f"brackets are nested more than {DEEPEST} deep", None, None)
    yaml = YAML(typ="rt")
    yaml.Constructor = _Constructor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            value = yaml.load(text)
    except (MarkedYAMLError, ReaderError) as error:
        raise explain(error, text) from None
    except RecursionError:
        raise Broken(f"brackets or lists are nested more than {DEEPEST} deep", None, None) from None
    except (YAMLError, ValueError, TypeError) as error:
        raise Broken(f"a value cannot be read ({error})", None, None) from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("%"):
            raise Broken(f"{line.strip()!r} is not needed; recipes are YAML 1.2, remove the line", number, 1)
    return value


def _start(value: Any, otherwise: tuple[int, int]) -> tuple[int, int]:
    """Give the place where a mapping or list begins."""
    mark = getattr(value, "lc", None)
    if mark is None or mark.line is None:
        return otherwise
    return mark.line + 1, mark.col + 1


class _Plain:
    """Turn ruamel's values into plain ones, and note the place of each."""

    def __init__(self, marks: dict[KeyPath, Place]) -> None:
        self.marks = marks
        self.count = 0

    def read(self, value: Any, path: KeyPath) -> Any:
        """Give the plain value; aliases are written out, up to a limit."""
        self.count += 1
        if self.count > MOST_VALUES or len(path) > DEEPEST:
            self._refuse(f"aliases or nesting make more than {MOST_VALUES:,} values or {DEEPEST} levels", path[:2])
        tag = getattr(getattr(value, "tag", None), "value", None)
        if tag is not None and not str(tag).endswith((":map", ":seq")):
            self._refuse(f"the tag {tag} is not allowed; recipes hold plain values only", path)
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, list):
            for index in range(len(value)):
                mark = _one_based(value.lc.item(index))  # type: ignore[attr-defined]
                self.marks[*path, index] = Place(mark, mark)
            return [self.read(item, (*path, index)) for index, item in enumerate(value)]
        return self._scalar(value, path)

    def _mapping(self, value: Mapping[Any, Any], path: KeyPath) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str | int | float | None):
                self._refuse(f"the key {key!r} is not a word; put it in quotes", path)
            word = "null" if key is None else str(key).lower() if isinstance(key, bool) else str(key)
            below = (*path, word)
            self.marks[below] = self._place(value, key, item, path)
            plain[word] = self.read(item, below)
        return plain

    def _place(self, value: Any, key: Any, item: Any, path: KeyPath) -> Place:
        """Look up a key's place; one merged in by `<<` stands at its mapping, an empty value at its key."""
        if key not in (value.lc.data or {}):
            here = self._nearest(path)
            return Place(here, here)
        line, column, value_line, value_column = value.lc.data[key]
        if item is None and value_line != line:
            value_line, value_column = line, column
        return Place((line + 1, column + 1), (value_line + 1, value_column + 1))

    def _scalar(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, bool | ScalarBoolean):
            return bool(value)
        for kind in (int, float, str):
            if isinstance(value, kind):
                return kind(value)
        if value is not None:
            self._refuse(f"{value!r} is not a plain value; write text, a number, true, false or null", path)
        return None

    def _nearest(self, path: KeyPath) -> tuple[int, int]:
        while path not in self.marks:
            path = path[:-1]
        return self.marks[path].value

    def _refuse(self, message: str, path: KeyPath) -> None:
        raise Broken(message, *self._nearest(path))


def _one_based(mark: tuple[int, int]) -> tuple[int, int]:
    return mark[0] + 1, mark[1] + 1
