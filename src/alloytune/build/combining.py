"""From a stage to what it combines."""

from typing import Literal

from alloytune.build.session import Session
from alloytune.models.combine import Combination
from alloytune.recipe.types.choosing import Combine
from alloytune.recipe.types.values import PRETRAINED
from alloytune.selection import Chooser, resolve


def build_combination(session: Session, number: int) -> Combination | None:
    """Translate a stage's `combine` into what is done after its training; None where nothing is."""
    combine = session.recipe.stages[number].combine
    if combine is None or combine.how == "running-average":
        return None
    start, *others = [PRETRAINED, *combine.with_] if combine.how == "sum-of-changes" else combine.with_
    chosen: Literal["fixed", "grid", "greedy"] = "fixed"
    if combine.how == "greedy-soup":
        chosen = "greedy"
    elif combine.how in ("interpolate", "sum-of-changes") and combine.weight in (None, "validate"):
        chosen = "grid"
    return Combination(start, tuple(others), _coefficients(combine, len(others)), chosen)


def build_combined(session: Session, number: int, chooser: Chooser | None = None) -> frozenset[str] | None:
    """Translate the `of` of a stage's `combine`; None where it names no weights. `chooser` makes its choices."""
    combine = session.recipe.stages[number].combine
    if combine is None or combine.of is None:
        return None
    return resolve(combine.of, session.state.roles(), f"stages[{number}].combine.of", chooser)


def _coefficients(combine: Combine, num_others: int) -> tuple[float, ...]:
    """Give the fixed coefficients, of no account where they are chosen."""
    if combine.how == "average":
        return (1 / (num_others + 1),) * num_others
    if isinstance(combine.weight, list):
        return tuple(combine.weight)
    return (combine.weight if isinstance(combine.weight, float | int) else 1.0,) * num_others
