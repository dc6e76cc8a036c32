"""From a stage's words about time to the course of what moves: turns, layers that join, layers that freeze."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from alloytune.build.joint import make_around, make_joint_course
from alloytune.build.plan import build_updates, in_updates
from alloytune.build.selections import select_turn
from alloytune.build.session import Session
from alloytune.errors import InputError
from alloytune.models.adapters import factors_of
from alloytune.models.roles import Roles
from alloytune.recipe.types.choosing import ByTurns, Unfreeze
from alloytune.recipe.types.values import read_threshold
from alloytune.selected import Selected
from alloytune.selection import Chooser
from alloytune.stages.measures import measure_turn
from alloytune.train.moving import Moving
from alloytune.train.optimizers import Optimizer
from alloytune.train.ranks import Ranks
from alloytune.train.turns import Course, Series, Settling, Turn, Turns, steady


def make_course(session: Session, number: int, moving: Moving, chooser: Chooser) -> Course:
    """Translate what a stage says about what moves when; `chooser` makes the choices of its first turn.

    Raises InputError where too few layers move for them to join or freeze one after another.
    """
    stage, where, roles = session.recipe.stages[number], f"stages[{number}]", session.state.roles()
    if stage.joint:
        return make_joint_course(session, number, moving, partial(_in_updates, session, number))
    if isinstance(stage.train, ByTurns):
        turn = partial(_turn, session, number, stage.train.rotate.choose, roles, chooser)
        return Series(turn, _in_updates(session, number, stage.train.rotate.every), last=None)
    if stage.unfreeze:
        layers = _layers(roles, moving, f"{where}.unfreeze")
        return _unfreezing(stage.unfreeze, moving.selected, layers, partial(_in_updates, session, number))
    if stage.freeze_when:
        layers = _layers(roles, moving, f"{where}.freeze_when")
        least, check = read_threshold(stage.freeze_when.change), stage.freeze_when.check
        return Settling(moving.selected, layers, session.state.model, least, check)
    return steady(moving.selected)


def make_turns(
    session: Session,
    number: int,
    moving: Moving,
    course: Course,
    optimizer: Optimizer,
    on_turn: Callable[[Turn, int, Mapping[str, int]], None] = lambda turn, update, counts: None,
) -> Turns:
    """Give what lets move, update by update, what the course of a stage says, and cuts the ranks of its adapters."""
    stage, model = session.recipe.stages[number], session.state.model
    forgets = isinstance(stage.train, ByTurns) and stage.train.rotate.state == "reset"
    joint, all_ranks = make_around(session, number, course), _ranks(session, number)

    def at_share(share: float) -> None:
        for ranks in all_ranks:
            ranks.at(share)

    @contextmanager
    def around(step: Optimizer) -> Iterator[None]:
        with ExitStack() as stack:
            for each in (*(ranks.around for ranks in all_ranks), *([joint] if joint else [])):
                stack.enter_context(each(step))
            yield

    return Turns(
        course, moving.names, model, optimizer, forgets=forgets, on_turn=on_turn, at_share=at_share, around=around
    )


def _ranks(session: Session, number: int) -> list[Ranks]:
    """Give what cuts the ranks of each attached adapter; one of an earlier stage or another tool keeps those it has."""
    own = [attach.called for attach in session.recipe.stages[number].attaches]
    made = []
    for attached in session.state.attached:
        if factors := factors_of(session.state.model, attached):
            attachment = attached.attachment
            budget = attachment.settings.budget if attachment.name in own else lambda share: None
            made.append(Ranks(factors, budget, attached.config.orth_reg_weight))
    return made


def _turn(session: Session, number: int, choose: str, roles: Roles, chooser: Chooser, turn: int) -> Turn:
    """Choose what moves in a turn. The first is chosen by what the stage began with, others by scores of their own."""
    measures = measure_turn(session, number, choose, roles, turn) if turn else None
    always, chosen = select_turn(session, number, roles, chooser, measures or chooser)
    return Turn(turn, always | chosen, {"scores": measures.tensors} if measures and measures.tensors else {})


def _unfreezing(
    unfreeze: Unfreeze, selected: Selected, layers: Sequence[frozenset[str]], in_updates: Callable[[str], int]
) -> Series:
    """Give the course in which one layer after another joins what is above all layers."""
    joining = layers[::-1] if unfreeze.from_ == "top" else layers
    resting = [frozenset[str]().union(*joining[count:]) for count in range(1, len(joining) + 1)]

    def turn(number: int) -> Turn:
        return Turn(number, selected - Selected(resting[number]))

    return Series(turn, in_updates(unfreeze.every or "1 epoch"), last=len(joining) - 1)


def _layers(roles: Roles, moving: Moving, where: str) -> Sequence[frozenset[str]]:
    """Give what moves of the embeddings and of each layer, adapters too, bottom first, without what rests."""
    heights = [roles.members.get("embeddings", frozenset()), *roles.whole_layers]
    found = [names & moving.names for names in heights if names & moving.names]
    if len(found) < 2:
        raise InputError(where, f"{len(found)} layer moves in this stage", "remove it, or add layers to train")
    return found


def _in_updates(session: Session, number: int, interval: str) -> int:
    return in_updates(interval, build_updates(session, number, attempt=0).per_epoch)
