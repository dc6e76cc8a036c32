"""From a stage to how it comes by what its frozen layers give."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from alloytune.build.plan import build_updates
from alloytune.build.selections import selections
from alloytune.build.session import Session
from alloytune.errors import InputError
from alloytune.expression import choices_in, parse
from alloytune.models.frozen_prefix import FrozenPrefix, find_frozen_prefix
from alloytune.models.weights import free_only, named_weights
from alloytune.recipe.types.ending import Until
from alloytune.tasks.abilities import Varying
from alloytune.tasks.task import Example
from alloytune.tasks.tokenized import count_tokens
from alloytune.train.moving import Moving
from alloytune.train.prefix_reader import PrefixReader, Reading, agrees
from alloytune.trying import evaluating

_NO_LAYERS = "no layer stands below all that moves"
_OTHER_BASE = "its partial view sees the pretrained layers (joint.over)"
_OWN_VIEWS = "a view of it learns something of its own"
_DISAGREES = "this model does not give the same when its layers are stood in for"
_VARIES = "its examples look different in every epoch"
_ONE_PASS = "it passes over its rows less than twice, or ends by time alone"


def make_reader(session: Session, number: int, moving: Moving) -> tuple[PrefixReader, str | None]:
    """Give what stands between a stage and its frozen layers, and why nothing is kept where that is so.

    All that may move in the stage must be free by now. The layers are in evaluation mode in any case, unless standing
    in for them would change what the model gives.
    """
    reading = _reading(session)
    prefix, reason = _find_prefix(session, number, moving, reading)
    reason = reason or _why_not(session, number)
    if prefix is None or reason is not None:
        return PrefixReader(prefix, reading), reason
    machine, state = session.machine, session.state
    # what never moved is the same all through a session
    still: dict[Tensor, str] = {w: name for name, w in named_weights(state.model).items() if name not in state.touched}
    computed_in = (str(machine.device), str(machine.precision))
    shelf = session.activations.shelf(prefix.fingerprint(*computed_in, known=still))
    return PrefixReader(prefix, reading, session.examples["train"], shelf), None


def check_cache(session: Session, number: int, moving: Moving) -> None:
    """Raise InputError where a stage asks for its frozen layers to be kept, and nothing of the kind can be."""
    stage = session.recipe.stages[number]
    choices = [choice for text in selections(stage, number).values() for choice in choices_in(parse(text))]
    if stage.cache is not True or choices:  # what stands still is known when the choice is made
        return
    free_only(session.state.model, moving.names)
    _, reason = make_reader(session, number, moving)
    if reason is not None:
        raise InputError(f"stages[{number}].cache", f"nothing can be kept: {reason}", "remove it, or say auto")


def cache_facts(reader: PrefixReader, reason: str | None) -> dict[str, Any]:
    """Give for the record how many layers stood still, and what was kept of them, or why nothing was."""
    layers = reader.prefix.num_layers if reader.prefix else 0
    if reader.shelf is None:
        return {"layers": layers, "kept": False, "reason": reason}
    return {
        "layers": layers,
        "kept": True,
        "bytes": reader.shelf.num_bytes,
        "texts_computed": reader.num_computed,
        "texts_read": reader.num_read,
        "seconds": round(reader.seconds, 3),
    }


def _reading(session: Session) -> Reading:
    collate = partial(session.task.collate, tokenizer=session.tokenizer)
    return Reading(collate, session.task.outputs, session.machine)


def _find_prefix(
    session: Session, number: int, moving: Moving, reading: Reading
) -> tuple[FrozenPrefix | None, str | None]:
    """Find the frozen layers of a stage that can be stood in for; else say why there are none."""
    joint, state = session.recipe.stages[number].joint, session.state
    roles, model = state.roles(), state.model
    layers = roles.stacks.get("layers", ())
    if joint is not None and joint.over == "pretrained":
        return None, _OTHER_BASE
    if session.recipe.beside(number):
        return None, _OWN_VIEWS
    if not moving.groups or not layers or layers[0] & moving.names:
        return None, _NO_LAYERS
    examples = _of_all_lengths(session.examples["train"])
    with evaluating(model):
        prefix = find_frozen_prefix(
            model,
            roles,
            lambda: reading.outputs_of(model, reading.collate(examples)),
            adapters=joint is None or joint.mode not in ("views", "sample"),  # which take adapters off for some passes
        )
    if prefix is None:
        return None, _NO_LAYERS
    tried = (prefix, prefix.without_entries())
    agreeing = next((one for one in tried if agrees(one, reading, examples)), None)
    return agreeing, None if agreeing else _DISAGREES


def _of_all_lengths(examples: Sequence[Example]) -> list[Example]:
    """Give three examples: of the least, a middle and the greatest length."""
    order = np.argsort(count_tokens(examples), kind="stable")
    return [examples[int(order[place])] for place in sorted({0, len(order) // 2, len(order) - 1})]


def _why_not(session: Session, number: int) -> str | None:
    """Say why a stage keeps nothing of what its frozen layers give; None where it does."""
    stage = session.recipe.stages[number]
    if _varies(session):
        return _VARIES
    if stage.cache is False:
        return "cache: false"
    updates = build_updates(session, number, attempt=0)
    return _ONE_PASS if stage.cache == "auto" and _num_passes(stage.until, updates.per_epoch) < 2 else None


def _num_passes(until: Until, updates_per_epoch: int) -> float:
    """Give how often a stage may pass over its rows; not once for sure where time alone ends it.

    Its first updates would be spent on keeping what it may never read again.
    """
    if until.minutes and not (until.epochs or until.updates or until.flops):
        return 0.0
    by_updates = until.updates / updates_per_epoch if until.updates else math.inf
    return min(until.epochs or math.inf, by_updates)


def _varies(session: Session) -> bool:
    task, example = session.task, session.examples["train"][0]
    if not isinstance(task, Varying):
        return False
    drawn = (task.varied(example, np.random.default_rng(seed)).inputs for seed in range(2))
    return any(inputs != example.inputs for inputs in drawn)
