"""Rules on selections that choose: where a choice may stand, and what it needs beside it."""

from collections.abc import Iterator, Sequence

from alloytune.expression import Choice, choices_in, parse, roles_in, show
from alloytune.recipe.nearest import nearest_word
from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types.choosing import Scaled, Scoring
from alloytune.recipe.types.stage import Stage

_WHOLE = {
    "attach": "an adapter sits beside whole layers",
    "rates": "a rate is one of a whole tensor",
    "combine": "whole tensors are combined",
    "joint": "a weight is one of whole tensors",
}
CHOOSE: KeyPath = ("train", "rotate", "choose")


def check_choices(stage: Stage, path: KeyPath) -> Iterator[Mistake]:
    """Find choices that cannot be made where they stand, and a `score` that nothing asks for."""
    places: list[tuple[KeyPath, str]] = [((*path, *key), text) for key, text in stage.trains.items()]
    places += [((*path, "rates", text), text) for text in stage.rates]
    places += [((*path, *key, "on"), on) for key, on in _attached(stage)]
    if stage.reinit:
        places.append(((*path, "reinit"), stage.reinit))
    if stage.joint and stage.joint.of:
        places.append(((*path, "joint", "of"), stage.joint.of))
    if stage.combine and stage.combine.of:
        places.append(((*path, "combine", "of"), stage.combine.of))
    chosen = [(where, choice) for where, text in places for choice in choices_in(parse(text))]
    for where, choice in chosen:
        if message := _problem(choice, where[len(path) :], stage):
            yield Mistake(where, message, at_key="rates" in where)
    is_scored = any(choice.score for _, choice in chosen) or isinstance(stage.rate, Scaled)
    if stage.score != Scoring() and not is_scored:
        message = "no selection or rate of this stage asks for a score; use one, such as `train: top(rgn, 25%)`"
        about = tuple((*path, key) for key in ("train", "rate", "rates", "attach", "combine", "joint"))
        yield Mistake((*path, "score"), f"{message}, or remove it", at_key=True, about=about)


def check_scored_stages(stages: Sequence[Stage]) -> Iterator[Mistake]:
    """Find a stage that `score: {after: ...}` names in vain: it is not an earlier one, or no change is looked at."""
    names = [stage.name for stage in stages]
    for index, stage in enumerate(stages):
        path: KeyPath = ("stages", index, "score", "after")
        if stage.score.after is None:
            continue
        if stage.score.after not in names[:index]:
            near = nearest_word(stage.score.after, names[:index])
            there = f"there are {', '.join(names[:index])}" if index else "this is the first stage"
            message = f"{stage.score.after!r} is no earlier stage; {f'did you mean {near!r}?' if near else there}"
            yield Mistake(path, message, about=tuple(("stages", number, "name") for number in range(len(stages))))
        if not _looks_at_change(stage):
            message = "'after' is for weight_change, which nothing here is chosen by when the stage begins; remove it"
            about = tuple(("stages", index, key) for key in ("train", "rate", "rates", "attach", "combine"))
            yield Mistake(path, message, at_key=True, about=about)


def _looks_at_change(stage: Stage) -> bool:
    """Tell whether something is chosen or scaled by weight_change when a stage begins, and not only in later turns."""
    texts = [text for key, text in stage.trains.items() if key != CHOOSE]
    texts += [*stage.rates, *(on for _, on in _attached(stage))]
    texts += [stage.combine.of] if stage.combine and stage.combine.of else []
    scores = {choice.score for text in texts for choice in choices_in(parse(text))}
    return "weight_change" in scores or (isinstance(stage.rate, Scaled) and stage.rate.scale == "weight_change")


def _attached(stage: Stage) -> Iterator[tuple[KeyPath, str]]:
    """Give the places in a stage where adapters are attached, and what each goes on."""
    for number, attach in enumerate(stage.attaches):
        own = (number,) if isinstance(stage.attach, list) else ()
        for kind in attach.kinds:
            yield ("attach", *own, kind), getattr(getattr(attach, kind), "on", "all")


def _problem(choice: Choice, key: KeyPath, stage: Stage) -> str | None:
    shown = show(choice)
    if choice.how == "cycle" and key != CHOOSE:
        turns = f'train: {{rotate: {{choose: "{shown}", every: 1 epoch}}}}'
        return f"{shown!r} is a choice over time; write layers or random(2, by=layer) here, or `{turns}`"
    if key[0] == "reinit" and choice.how != "lowest_layers":
        return f"{shown!r} is a choice, and weights are drawn anew before any is made; name layers or roles"
    if choice.by == "element" and key[0] != "train":
        return f"{shown!r} chooses single elements, and {_WHOLE[str(key[0])]}; write by=tensor"
    if choice.score and stage.attach and any(role.split(".")[0] == "adapter" for role in roles_in(choice)):
        return f"{shown!r} scores an adapter before it is attached; attach it in an earlier stage, or use random"
    return None
