"""The recipes that come with Alloytune."""

import re
from functools import cache
from importlib.resources import files

from ruamel.yaml import YAML


@cache
def names() -> tuple[str, ...]:
    """List the shipped recipes, in alphabetical order."""
    folder = files("alloytune.recipe") / "shipped"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def text(name: str) -> str:
    """Give the text of a shipped recipe; raises KeyError where there is none of that name."""
    if name not in names():
        raise KeyError(name)
    return (files("alloytune.recipe") / "shipped" / f"{name}.yaml").read_text(encoding="utf-8")


def summaries() -> dict[str, str]:
    """Give every shipped recipe's name with the first sentence of what it says `about` itself."""
    return {name: first_sentence(YAML(typ="safe", pure=True).load(text(name))["about"]) for name in names()}


def first_sentence(about: str) -> str:
    """Cut a text after its first sentence; the dot of `et al.` ends none."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(about.split()))[0]
