"""Find the text of a recipe by the name or path that the user gave."""

import os
from dataclasses import dataclass
from pathlib import Path

from alloytune.errors import Problem, RecipeError
from alloytune.recipe.nearest import nearest_word
from alloytune.recipe.own import own_recipes, recipes_in
from alloytune.recipe.shipped import shipped_names, shipped_text

LARGEST_BYTES = 1_000_000
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Found:
    """A recipe's text, the name shown in messages, and the folder that its paths are relative to."""

    source: str
    text: str
    folder: Path


def find(name_or_path: str | os.PathLike[str]) -> Found:
    """Read a shipped recipe, one of the user's own, or a file; raises RecipeError that names what is near."""
    given, own = os.fspath(name_or_path), own_recipes()
    if given in shipped_names():
        return Found(f"shipped/{given}.yaml", shipped_text(given), Path.cwd())
    if given in own:
        return find(own[given])
    path = Path(given).expanduser()
    if path.is_dir():
        raise _refused(
            given, f"is a folder, not a recipe{_list(_names_in(path), '; it holds ', '; name a .yaml file')}"
        )
    if not path.exists():
        raise _refused(given, f"there is no such recipe; {_nearest(given, path)}")
    if path.suffix.lower() in TABLES:
        raise _refused(
            given, f"is a table, not a recipe; name a recipe first, and the table behind it: full --data {given}"
        )
    return Found(given, _decode(_read(path, given), given), path.absolute().parent)


def _read(path: Path, given: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise _refused(given, f"has {size:,} bytes, and no recipe is so large; is it the data? Name a .yaml file")
        return path.read_bytes()
    except OSError as error:
        raise _refused(given, f"cannot be read ({error.strerror}); check that it is a file that you may read") from None


def _decode(content: bytes, given: str) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        what = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else f"the byte 0x{content[error.start]:02x}"
        message = f"the file is not UTF-8 (found {what}); save it as UTF-8"
        raise RecipeError([Problem(given, line, column, "", message)]) from None


def _nearest(given: str, path: Path) -> str:
    """Name the nearest file in the folder or shipped recipe, and all shipped ones."""
    there = f"shipped recipes: {', '.join(shipped_names())}"
    known = {name: f"the shipped recipe {name!r}" for name in shipped_names()}
    known |= {name: f"your recipe {name!r}" for name in own_recipes()}
    if path.parent.is_dir():
        known |= {name: repr(str(path.parent / name)) for name in _names_in(path.parent)}
    elif path.parent != Path():
        return f"there is no folder {str(path.parent)!r} either; {there}"
    near = nearest_word(path.name, [*known], cutoff=0.6) or nearest_word(path.stem, [*known], cutoff=0.6)
    return f"did you mean {known[near]}? {there}" if near else f"name a .yaml file, or one of the {there}"


def _names_in(folder: Path) -> list[str]:
    return [file.name for file in recipes_in(folder)]


def _list(names: list[str], start: str, otherwise: str) -> str:
    return start + ", ".join(names[:8]) if names else otherwise


def _refused(given: str, message: str) -> RecipeError:
    return RecipeError([Problem(given, None, None, "", message)])
