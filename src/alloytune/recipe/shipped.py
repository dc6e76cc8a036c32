"""The recipes that come with Alloytune."""

import difflib
import re
from functools import cache
from importlib.resources import files

from alloytune.errors import Problem, RecipeError


@cache
def shipped_names() -> tuple[str, ...]:
    """List the shipped recipes, in alphabetical order."""
    folder = files("alloytune.recipe") / "shipped"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def shipped_text(name: str) -> str:
    """Give the text of a shipped recipe; raises RecipeError where there is none of that name."""
    if name not in shipped_names():
        near = difflib.get_close_matches(name, shipped_names(), n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        message = f"there is no shipped recipe {name!r}; {meant}there are {', '.join(shipped_names())}"
        raise RecipeError([Problem(name, None, None, "", message)])
    return (files("alloytune.recipe") / "shipped" / f"{name}.yaml").read_text(encoding="utf-8")


def first_sentence(about: str) -> str:
    """Give the first sentence of what a recipe says about itself; the dot of `et al.` ends none."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(about.split()))[0]
