"""The selections of a stage by where they stand in the recipe, and what takes turns."""

from alloytune.build.attaching import attached_at
from alloytune.build.session import Session
from alloytune.models.roles import Roles
from alloytune.recipe.types.choosing import Scaled
from alloytune.recipe.types.stage import Stage
from alloytune.selected import Selected
from alloytune.selection import Chooser, select


def select_turn(
    session: Session, number: int, roles: Roles, chooser: Chooser | None, of_turn: Chooser
) -> tuple[Selected, Selected]:
    """Give what moves in every turn of a stage, and what `of_turn` chooses to move beside it in one turn."""
    always = chosen = Selected(frozenset())
    for key, text in session.recipe.stages[number].trains.items():
        where = ".".join((f"stages[{number}]", *key))
        if key[-1] == "choose":
            chosen = select(text, roles, where, of_turn)
        else:
            always = select(text, roles, where, chooser)
    return always, chosen


def selections(stage: Stage, number: int) -> dict[str, str]:
    """Give the selections of a stage by their place in the recipe."""
    where = f"stages[{number}]"
    found = {".".join((where, *key)): text for key, text in stage.trains.items()}
    found |= {f"{where}.rates.{text}": text for text in stage.rates}
    if stage.joint and stage.joint.of:
        found[f"{where}.joint.of"] = stage.joint.of
    if stage.combine and stage.combine.of:
        found[f"{where}.combine.of"] = stage.combine.of
    for place, attach in enumerate(stage.attaches):
        found[f"{attached_at(stage, number, place)}.{attach.kinds[0]}.on"] = attach.on
    return found


def scale(stage: Stage) -> str | None:
    """Give the score that a stage's rate is scaled by, if any."""
    return stage.rate.scale if isinstance(stage.rate, Scaled) else None
