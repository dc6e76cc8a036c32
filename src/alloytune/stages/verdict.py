"""Whether a stage is kept, and why: its scores against those of the model that it must better."""

import numpy as np

from alloytune.build.session import Session
from alloytune.evaluate.compare import standard_error
from alloytune.metrics import METRICS, gain
from alloytune.models.heads import MAIN
from alloytune.recipe.types.ending import Accept
from alloytune.recipe.types.values import read_gain
from alloytune.record.folder import RunFolder
from alloytune.stages.snapshots import kept_stages
from alloytune.tasks.task import Scores

BROKEN = "the model answers the same to every row"
LEAST_SPREAD = 2e-3  # of outputs that tell rows apart, beyond the rounding of bfloat16; 0.02 in MiniLM, head untrained
STILL_TOLD = 0.25  # of the spread before: 0.09 was seen in a broken model, 70 in one that had learned


def is_broken(before: Scores, after: Scores) -> bool:
    """Tell whether a model told rows apart, and does no more: too high a rate leaves it so for good."""
    if before.spread is None or after.spread is None or before.spread < LEAST_SPREAD:
        return False
    return after.spread < STILL_TOLD * before.spread


def judge(folder: RunFolder, session: Session, number: int, before: Scores, after: Scores) -> tuple[bool, str]:
    """Decide whether a stage is kept, and say why. `before` are the scores of the model that it began with."""
    accept = session.recipe.stages[number].accept
    counts = session.recipe.view(number).scored_by
    if accept is None:
        lost = -gain(counts, before.values[counts], after.values[counts])
        return True, f"always kept, though {counts} is worse by {lost:.4f}" if lost > 0 else "always kept"
    metric = accept.metric or counts
    name, rival = _best(folder, session, number, metric, before) if accept.against == "best" else ("", before)
    needed, shown = _needed(session, accept, metric, rival, after)
    gained = gain(metric, rival.values[metric], after.values[metric])
    lower = "lower by " if METRICS[metric].lower else ""
    return gained >= needed, (
        f"needed {metric} {lower}{shown} or more{f' on {name}' if name else ''}, got {lower}{gained:+.4f}"
    )


def _best(folder: RunFolder, session: Session, number: int, metric: str, before: Scores) -> tuple[str, Scores]:
    """Give the best model so far in what a stage learns, and its name: kept stages, and what they began with."""
    recipe = session.recipe
    own = recipe.learning_of(number)
    start = Scores(**folder.read("stages/start.json")) if own == MAIN else before
    found = {"the start": start}
    for kept, stage in kept_stages(folder, session).items():
        result = stage.result()
        assert result is not None
        if recipe.learning_of(kept) != own:
            continue
        found[f"stage {result['name']}"] = Scores(**result["scores"])
    name = max(found, key=lambda name: found[name].rank(metric))
    return name, found[name]


def _needed(session: Session, accept: Accept, metric: str, rival: Scores, after: Scores) -> tuple[float, str]:
    """Give the gain that is needed, as a number and in words."""
    amount, counts_errors = read_gain(accept.gain)
    if not counts_errors:
        return amount, f"{amount:+g}"
    one, two = np.array(rival.figures), np.array(after.figures)
    error = standard_error(metric, one, two, session.task.values, session.recipe.seed)
    return amount * error, f"{amount * error:+.4f} ({accept.gain})"
