"""Rules on weights that take turns, that join one after another, or that freeze on the way."""

from collections.abc import Iterator

from alloytune.expression import Choice, Joined, Selection, choices_in, parse, show
from alloytune.recipe.choices import CHOOSE
from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types.choosing import ByTurns, Rotate
from alloytune.recipe.types.optimizer import read_optimizer
from alloytune.recipe.types.stage import Stage


def check_turns(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    """Find turns that would all be the same or might be empty, and ways over time that do not go together."""
    if isinstance(stage.train, ByTurns):
        yield from _check_rotate(stage.train.rotate, (*path, *CHOOSE[:-1]))
    ways = {"train": isinstance(stage.train, ByTurns), "unfreeze": stage.unfreeze, "freeze_when": stage.freeze_when}
    first, *others = [key for key, is_given in ways.items() if is_given] or [""]
    for key in others:
        what = "`train: {rotate: ...}`" if first == "train" else f"`{first}`"
        message = f"{key!r} and {what} both say what moves when; keep one of them in this stage"
        yield Mistake((*path, key), message, at_key=True, about=((*path, first),))
    if first in ("train", "freeze_when") and read_optimizer(stage.optimizer)[0] == "schedule_free":
        message = "schedule_free keeps two values of a weight until the stage ends, and some rest before; use adamw"
        yield Mistake((*path, "optimizer"), message, about=((*path, first),))
    if stage.unfreeze and stage.unfreeze.one and stage.unfreeze.every:
        message = "'every' and `one: epoch` are two intervals; keep one of them"
        yield Mistake((*path, "unfreeze", "every"), message, at_key=True, about=((*path, "unfreeze", "one"),))
    if stage.freeze_when and stage.freeze_when.check == 0:
        message = "a check after 0% of the stage never comes to an end; write one such as 10%"
        yield Mistake((*path, "freeze_when", "check"), message)


def _check_rotate(rotate: Rotate, path: KeyPath) -> Iterator[Mistake]:
    chosen = parse(rotate.choose)
    if not any(choice.how != "lowest_layers" for choice in choices_in(chosen)):
        message = f"{rotate.choose!r} is the same in every turn; write random(2, by=layer), cycle(by=layer) or a score"
        yield Mistake((*path, "choose"), message)
    for choice in _cut_choices(chosen):
        message = f"what is left of {show(choice)!r} may be nothing in some turn; choose within `of`, and join with |"
        yield Mistake((*path, "choose"), message)
    if rotate.state == "keep" and any(choice.by == "element" for choice in choices_in(chosen)):
        message = (
            "a tensor counts its updates as a whole, so memory that is kept would be corrected wrongly for elements "
            "that join later; write reset"
        )
        yield Mistake((*path, "state"), message, about=((*path, "choose"),))


def _cut_choices(selection: Selection) -> Iterator[Choice]:
    """Give the choices that `&` or `-` takes something away from."""
    if isinstance(selection, Joined) and selection.operator == "|":
        yield from _cut_choices(selection.left)
        yield from _cut_choices(selection.right)
    elif isinstance(selection, Joined):
        yield from choices_in(selection)
