"""The model as it stood after an earlier stage: read from that stage's checkpoint, or loaded anew as it came."""

from collections.abc import Callable, Iterable

from alloytune.build.combining import build_combination, build_combined
from alloytune.build.session import Session
from alloytune.errors import InputError
from alloytune.models.combine import Mixture, combine, require_alike
from alloytune.models.weights import Weights, copy_weights
from alloytune.recipe.types.values import PRETRAINED
from alloytune.record.decisions import Decision
from alloytune.record.folder import RunFolder, StageFolder
from alloytune.selection import Chooser
from alloytune.tasks.task import Scores
from alloytune.train.checkpoint import Checkpoint, load_checkpoint


def kept_stages(folder: RunFolder, session: Session) -> dict[int, StageFolder]:
    """Give the stages that were kept so far, by number."""
    folders = {number: folder.stage(number, stage.name) for number, stage in enumerate(session.recipe.stages)}
    results = {number: stage.result() for number, stage in folders.items()}
    return {
        number: folders[number] for number, result in results.items() if result and result["decision"] == Decision.KEPT
    }


def kept_checkpoint(stage: StageFolder) -> Checkpoint:
    """Read what a kept stage left; raises InputError when it is damaged."""
    checkpoint = load_checkpoint(stage.checkpoint)
    if checkpoint is None:
        remedy = f"delete {stage.path}, then resume: it trains anew"
        raise InputError(str(stage.checkpoint), "the checkpoint is damaged", remedy)
    return checkpoint


def kept_weights(stage: StageFolder) -> Weights:
    """Read every weight that may differ from the pretrained one after a kept stage."""
    return dict(kept_checkpoint(stage).tensors["weights"])


def weights_after(folder: RunFolder, session: Session, name: str) -> Weights:
    """Give every weight of the model as it stood after an earlier stage, on the machine's device."""
    number = _place(name, session, kept := kept_stages(folder, session))
    left = {} if number is None else session.state.heads.as_current(kept_weights(kept[number]))
    weights = {**session.pretrained_weights(), **left}
    return {name: weight.to(session.machine.device) for name, weight in weights.items()}


def names_combined(session: Session, number: int, chooser: Chooser) -> frozenset[str]:
    """Give the weights that a stage combines, of those that have moved; what stands beside its head is left alone."""
    of = build_combined(session, number, chooser)
    moved = session.state.touched - session.state.beside_names
    return moved if of is None else moved & of


def combine_snapshots(
    folder: RunFolder, session: Session, number: int, names: Iterable[str], evaluate: Callable[[], Scores]
) -> Mixture | None:
    """Carry out a stage's `combine` on these weights; give what was put into them, None where there is nothing to do.

    `evaluate` scores the model as it is, where validation chooses.
    """
    combination = build_combination(session, number)
    if combination is None:
        return None
    state = session.state
    here = copy_weights(state.model, names)
    sources = _read(folder, session, number, (combination.start, *combination.others), here)

    def rank(weights: Weights) -> list[float]:
        state.put(weights)
        return evaluate().rank(session.recipe.view(number).scored_by)

    mixture = combine(combination, sources, rank)
    state.put(mixture.weights)
    return mixture


def _read(folder: RunFolder, session: Session, number: int, named: Iterable[str], here: Weights) -> dict[str, Weights]:
    """Read the weights of `here` from every snapshot that is named; equal snapshots count once."""
    kept = kept_stages(folder, session)
    sources: dict[str, Weights] = {}
    seen: set[int | None] = set()
    for name in named:
        if name == session.recipe.stages[number].name:
            sources[name] = here
            continue
        place = None if name == PRETRAINED else _place(name, session, kept)
        if place not in seen:
            seen.add(place)
            sources[name] = {} if place is None else session.state.heads.as_current(kept_weights(kept[place]))
    if any(here.keys() - weights.keys() for weights in sources.values()):
        pretrained = session.pretrained_weights()
        sources = {name: {**pretrained, **weights} for name, weights in sources.items()}
    for name, weights in sources.items():
        require_alike(weights, here, name, f"stages[{number}].combine")
    return {name: {weight: weights[weight] for weight in here} for name, weights in sources.items()}


def _place(name: str, session: Session, kept: Iterable[int]) -> int | None:
    """Give the stage that left the model as it stood after the named one: itself, or the last kept before it."""
    numbers = {stage.name: number for number, stage in enumerate(session.recipe.stages)}
    return max((number for number in kept if number <= numbers[name]), default=None)
