"""What recipes there are and what each is for: the list by purpose, one recipe explained, and the page of all."""

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import get_args

from alloytune.errors import RecipeError, first_line
from alloytune.recipe.costs import MEASURED_ON, Cost, cost_of, show_share
from alloytune.recipe.found import find
from alloytune.recipe.own import own_recipes
from alloytune.recipe.read import read_recipe
from alloytune.recipe.shipped import first_sentence, shipped_names, shipped_text
from alloytune.recipe.types.recipe import Purpose
from alloytune.recipe.types.stage import Stage
from alloytune.recipe.yaml_text import load

PURPOSES = {
    "baseline": "one plain method, to begin with and to compare with",
    "quality": "several methods or views of the data, for the best score",
    "economy": "less time or memory than full fine-tuning",
    "compact": "a small change beside the base model, for many tasks on one model",
    "robustness": "few rows, rows that differ from those to come, or a model that must not forget",
}
OWN = "your own"
WIDTH = 116  # of a line in a comment
PAGE = f"""\
# Shipped recipes

<!-- Written by `python -m alloytune.recipe.schema` from the files in src/alloytune/recipe/shipped. -->

`alloytune train NAME --model MODEL --data TABLE` runs one; `alloytune recipes NAME > mine.yaml` gives a file to change.
Begin with `full`, or with `lora` where memory is short: what they reach is what the others are to beat.
*Moves* is the most that moves at one time, *cost* the floating-point operations of training as a part of those of
`full`, both counted on {MEASURED_ON} and 1,000 rows by `benchmarks/recipes.py`: with the search for a rate and with the
scores that a recipe measures (which weigh less where there are more rows), frozen layers that are kept once and not in
every epoch, without evaluations, and as if no stage ended early. Every rate is left to `auto`, which searches in stages
of about 107 updates and more. What they reach: [results.md](results.md). The keys:
[recipe-reference.md](recipe-reference.md).

Whatever a paper does is written in the same keys, none of which was made for one of them. Strategies of 2025 and 2026
among them: [`half`](#half) and [`reset-half`](#reset-half) (HFT), [`aletheia`](#aletheia),
[`hybrid-lora`](#hybrid-lora), [`route`](#route) (MoLF); and, with what they do otherwise said in them,
[`prelora-like`](#prelora-like) and [`heft-like`](#heft-like).
"""


@dataclass(frozen=True)
class Entry:
    """A recipe in the list. `purpose` is a word of PURPOSES, or None for one that does not say."""

    name: str
    purpose: str | None
    summary: str
    cost: Cost | None


def shipped() -> dict[str, list[Entry]]:
    """Give the shipped recipes by purpose."""
    entries = [_entry(name, shipped_text(name)) for name in shipped_names()]
    return {purpose: [entry for entry in entries if entry.purpose == purpose] for purpose in get_args(Purpose)}


def own() -> list[Entry]:
    """Give the user's own recipes; one that cannot be used says why."""
    return [_own(name) for name in own_recipes()]


def _own(name: str) -> Entry:
    try:
        read_recipe(name)
    except RecipeError as error:
        return Entry(name, None, f"It cannot be used: {first_line(error)}", None)
    return _entry(name, find(name).text)


def _entry(name: str, text: str) -> Entry:
    value, _ = load(text, name)
    about, purpose = (str(value[key]) if value.get(key) else None for key in ("about", "purpose"))
    return Entry(name, purpose, first_sentence(about or "It says nothing about itself."), cost_of(name))


def explained(name: str) -> str:
    """Give a recipe's file with a comment above it that tells what it does, stage by stage."""
    recipe, text, cost = read_recipe(name).recipe, find(name).text, cost_of(name)
    lines = [f"{name}: {recipe.purpose}, {PURPOSES[recipe.purpose]}" if recipe.purpose else name]
    if cost is not None:
        lines.append(f"on {MEASURED_ON} it moves up to {cost}")
    width = max(len(stage.name) for stage in recipe.stages)
    for stage in recipe.stages:
        told = f"  {stage.name:<{width}}  {'; '.join(_deeds(stage))}"
        lines += wrap(told, WIDTH, subsequent_indent=" " * (width + 4), drop_whitespace=True)
    return "".join(f"# {line}\n" for line in lines) + text


def _deeds(stage: Stage) -> Iterator[str]:
    """Say what a stage does, in order."""
    for verb, chosen in (("merges", stage.merge), ("drops", stage.drop)):
        if chosen:
            yield f"{verb} {'what is attached' if chosen is True else chosen}"
    if stage.reinit is not None:
        yield f"draws {stage.reinit} anew"
    for attach in stage.attaches:
        yield f"attaches {attach.called} on {attach.on}" if not attach.folder else f"attaches {attach.folder}"
    if stage.train is not None:
        limits = stage.until.model_dump(exclude_none=True)
        yield f"trains {stage.trained} until {', '.join(f'{key} {_value(value)}' for key, value in limits.items())}"
    if stage.combine is not None:
        yield f"combines {', '.join(stage.combine.with_) or 'its evaluations'} ({stage.combine.how})"
    if stage.accept is not None:
        yield f"kept if it gains {_value(stage.accept.gain)}, else {_otherwise(stage)}"


def _value(value: object) -> str:
    """Write a number, a word, or a mapping of them."""
    if isinstance(value, dict):
        return " ".join(f"{key} {_value(part)}" for key, part in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _otherwise(stage: Stage) -> str:
    return stage.otherwise if isinstance(stage.otherwise, str) else "retry"


def page() -> str:
    """Give the page of shipped recipes."""
    parts = [PAGE]
    for purpose, entries in shipped().items():
        rows = "".join(
            f"| [`{entry.name}`](#{entry.name}) | {entry.summary} | {_shown(entry.cost)} |\n" for entry in entries
        )
        head = f"## {purpose.capitalize()}: {PURPOSES[purpose]}\n"
        parts += [head, f"| recipe | what it does | moves | cost |\n|---|---|---|---|\n{rows}"]
    parts += [_section(name) for name in shipped_names()]
    return "\n".join(parts)


def _shown(cost: Cost | None) -> str:
    return " | " if cost is None else f"{show_share(cost.trained_share)} | {cost.relative:.2f}"


def _section(name: str) -> str:
    """Give what a recipe says about itself, and its stages as they stand in the file."""
    text = shipped_text(name)
    about = " ".join(str(load(text, name)[0]["about"]).split())
    stages = text[text.index("stages:") :]
    return f"## {name}\n\n{about}\n\n```yaml\n{stages}```\n"
