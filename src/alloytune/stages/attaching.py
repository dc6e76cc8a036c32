"""What a stage does to the model before it trains: merge, drop, draw anew, attach."""

from alloytune.build.attaching import attached_at, build_attachments, leaving
from alloytune.build.session import Place, Session
from alloytune.errors import InputError, VerificationError
from alloytune.evaluate.predict import few_to_compare, raw_outputs
from alloytune.models.heads import MAIN
from alloytune.models.verify import TOLERANCE, difference
from alloytune.selection import REHEARSAL, Chooser, resolve


def remove_adapters(session: Session, number: int) -> None:
    """Carry out a stage's `merge` and `drop`; after a rollback there may be nothing to do.

    Raises VerificationError when outputs change by more than rounding in a merge.
    """
    state, stage = session.state, session.recipe.stages[number]
    names = [attachment.name for attachment in state.attachments]
    merged = leaving(stage, "merge", names)
    if merged:
        _merge(session, merged, f"stages[{number}].merge")
    state.take_off(leaving(stage, "drop", names))


def enter_stage(session: Session, number: int) -> None:
    """Carry out a stage's `merge` and `drop`, and go over to what it learns."""
    remove_adapters(session, number)
    _turn(session, number)


def reinit_weights(session: Session, number: int) -> None:
    """Carry out a stage's `reinit`."""
    session.state.reinit(reinit_names(session, number), session.seed(number, Place.REINITIALISING))


def reinit_names(session: Session, number: int) -> frozenset[str]:
    """Give the weights that a stage's `reinit` draws anew, once the stage is entered."""
    text, state = session.recipe.stages[number].reinit, session.state
    if not text:
        return frozenset()
    return resolve(text, state.roles(), f"stages[{number}].reinit") - state.adapter_names - state.beside_names


def _turn(session: Session, number: int) -> None:
    """Go over to what a stage learns, with what its views learn beside it."""
    recipe = session.recipe
    session.state.turn_to(recipe.learning_of(number), tuple(dict.fromkeys(recipe.beside(number).values())))


def return_home(session: Session) -> None:
    """Go back to what the recipe learns; adapters that another task's last stage left standing are merged."""
    if session.state.heads.current != MAIN and session.state.attached:
        _merge(session, [attachment.name for attachment in session.state.attachments], "stages")
    session.state.turn_to(MAIN)


def attach_adapters(session: Session, number: int, chooser: Chooser, *, fresh: bool = True) -> frozenset[str]:
    """Carry out a stage's `attach`; give the base weights that an adapter began by moving."""
    moved = frozenset[str]()
    for place, attachment in enumerate(build_attachments(session, number, chooser)):
        where = attached_at(session.recipe.stages[number], number, place)
        moved |= session.state.attach(attachment, where, fresh=fresh)
    return moved


def arrange_adapters(session: Session, number: int, chooser: Chooser) -> None:
    """Attach and remove as a stage does, and move no weight of the base: for weights that are put in afterwards."""
    state, stage = session.state, session.recipe.stages[number]
    names = [attachment.name for attachment in state.attachments]
    merged = leaving(stage, "merge", names)
    for attachment in state.attachments:
        if attachment.name in merged and not attachment.settings.mergeable:
            kind = attachment.settings.kind
            raise InputError(f"stages[{number}].merge", f"a {kind} adapter cannot be merged", "remove `merge`")
    state.take_off([*merged, *leaving(stage, "drop", names)])
    _turn(session, number)
    attach_adapters(session, number, chooser, fresh=False)


def weights_at_stake(session: Session, number: int) -> frozenset[str]:
    """Give the weights that a stage's `merge`, `drop` and `attach` may move or remove."""
    state, stage = session.state, session.recipe.stages[number]
    names = [attachment.name for attachment in state.attachments]
    going = [*leaving(stage, "merge", names), *leaving(stage, "drop", names)]
    return state.at_stake(going) | state.displaced_by(build_attachments(session, number, REHEARSAL))


def _merge(session: Session, names: list[str], where: str) -> None:
    """Fold adapters in, in float32, and compare outputs on validation rows before and after."""
    examples = few_to_compare(session.examples["validation"])
    machine = session.machine.exact()
    batch = session.task.collate(examples, session.tokenizer)
    before = raw_outputs(session.state.model, batch, machine)
    session.state.merge(names)
    after = raw_outputs(session.state.model, batch, machine)
    change = difference(after, before)
    if not change <= TOLERANCE:
        raise VerificationError(
            f"{where}: merging {', '.join(names)} changed outputs by {change:.1e} of the largest (allowed: "
            f"{TOLERANCE:.0e}); keep what is attached by giving the next adapter another `name`"
        )
