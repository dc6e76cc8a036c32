"""From a stage to the adapters that it attaches, merges or drops."""

from collections.abc import Iterable
from typing import Literal

from alloytune.build.session import Place, Session
from alloytune.expression import leaves_rest, parse
from alloytune.models.adapters import Attachment
from alloytune.models.folder import read_folder
from alloytune.models.methods import METHODS, Method
from alloytune.recipe.types.adapter import Attach
from alloytune.recipe.types.stage import Stage
from alloytune.selection import REHEARSAL, Chooser, resolve


def build_attachments(session: Session, number: int, chooser: Chooser | None = None) -> list[Attachment]:
    """Translate a stage's `attach`. `chooser` makes the choices of its selections."""
    stage = session.recipe.stages[number]
    if not stage.attaches:
        return []
    roles = session.state.roles()
    attachments = []
    for place, attach in enumerate(stage.attaches):
        (kind,) = attach.kinds
        where = f"{attached_at(stage, number, place)}.{kind}"
        settings = _method(attach, kind, where)
        names = resolve(attach.on, roles, f"{where}.on", chooser)
        own_seed = session.seed(number, Place.ATTACHING, place)
        # a rehearsal leaves to the rest all that may be left to it, the layers of what is chosen included
        stack = attach.stack or (chooser is REHEARSAL and leaves_rest(parse(attach.on)))
        attachments.append(Attachment(attach.called, settings, names, own_seed, stack))
    return attachments


def attached_at(stage: Stage, number: int, place: int) -> str:
    """Name one of a stage's adapters as its recipe does."""
    listed = isinstance(stage.attach, list)
    return f"stages[{number}].attach[{place}]" if listed else f"stages[{number}].attach"


def leaving(stage: Stage, verb: Literal["merge", "drop"], attached: Iterable[str]) -> list[str]:
    """Give those of the attached adapters that a stage merges or drops."""
    chosen = getattr(stage, verb)
    return [name for name in attached if chosen is True or chosen == name]


def _method(attach: Attach, kind: str, where: str) -> Method:
    """Translate the settings of an adapter: the recipe's words for a kind are its fields."""
    if attach.folder is not None:
        return read_folder(attach.folder, where)
    return METHODS[kind](**getattr(attach, kind).model_dump(exclude={"on"}))
