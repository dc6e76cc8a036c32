"""What a selection holds in a model: an expression resolved against roles, its choices made by a `Chooser`.

Nothing here knows torch: roles are any object that maps them to parameter names, masks any that join like booleans.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate
from math import prod
from typing import Protocol

from alloytune.errors import InputError
from alloytune.expression import (
    MATRIX_SCORES,
    SIDES,
    Choice,
    Joined,
    Layers,
    Named,
    Role,
    Selection,
    choices_in,
    parse,
    show,
)
from alloytune.selected import Selected


class RoleTable(Protocol):
    """What a selection is resolved against; `alloytune.models.roles.Roles` is one."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameter name to shape, in the model's order."""

    @property
    def members(self) -> Mapping[str, frozenset[str]]:
        """Role to the names that play it."""

    @property
    def stacks(self) -> Mapping[str, tuple[frozenset[str], ...]]:
        """`layers`, `encoder.layers`, `decoder.layers`, `adapter.layers` to a set of names per layer, bottom first."""

    @property
    def whole_layers(self) -> Sequence[frozenset[str]]:
        """The layers, bottom first, each with the adapters in it."""


class Chooser(Protocol):
    """Who makes the choices; `alloytune.stages.measures.Measures` is one."""

    def choose(
        self, choice: Choice, units: Sequence[frozenset[str]], shapes: Mapping[str, tuple[int, ...]]
    ) -> Selected:
        """Choose among layers or tensors, or among the elements of these tensors."""

    def scores(self, score: str) -> Mapping[str, float]:
        """Give a score by tensor."""


class _Rehearsal:
    """Chooses everything that might be chosen: for finding out beforehand whether a selection can be resolved."""

    def choose(
        self, choice: Choice, units: Sequence[frozenset[str]], shapes: Mapping[str, tuple[int, ...]]
    ) -> Selected:
        return Selected(frozenset().union(*units))

    def scores(self, score: str) -> Mapping[str, float]:
        return {}


REHEARSAL = _Rehearsal()


def select(text: str, roles: RoleTable, where: str, chooser: Chooser | None = None) -> Selected:
    """Give what an expression selects.

    Raises InputError, with the roles there are and their sizes, when the expression or a part of it matches
    nothing, or when a part changes nothing (`all | head`: the head is in `all` already); and when it makes a choice
    where there is no chooser.
    """
    selected = _resolve(parse(text), text, roles, where, chooser)
    if not selected.names:
        raise InputError(where, f"{text!r}: this model has no head of its own", f"there are: {sizes(roles)}")
    return selected


def resolve(text: str, roles: RoleTable, where: str, chooser: Chooser | None = None) -> frozenset[str]:
    """Give the names of the parameters that an expression of whole parameters selects; raises as `select` does."""
    selected = select(text, roles, where, chooser)
    if selected.masks:
        raise InputError(where, f"{text!r} selects single elements", "choose by=tensor or by=layer here")
    return selected.names


def candidates(choice: Choice, roles: RoleTable, where: str) -> frozenset[str]:
    """Give the parameters that a choice is made among; raises as `select` does."""
    return _resolve(choice, show(choice), roles, where, REHEARSAL).names


def sizes(roles: RoleTable) -> str:
    """Give the roles there are with their parameter counts, as `head 1,155, layers[0:6] 10,646,784, ...`."""
    counted = [
        f"{role} {sum(prod(roles.shapes[name]) for name in names):,}"
        for role, names in sorted(roles.members.items())
        if names
    ]
    stacks = [f"{path}[0:{len(layers)}]" for path, layers in sorted(roles.stacks.items())]
    return ", ".join(counted + stacks)


def _resolve(selection: Selection, text: str, roles: RoleTable, where: str, chooser: Chooser | None) -> Selected:
    match selection:
        case Joined(left, operator, right):
            first, second = (_resolve(part, text, roles, where, chooser) for part in (left, right))
            if chooser is REHEARSAL and operator == "-" and next(choices_in(right), None):
                return first  # of which the choice may leave anything
            if (not second and operator in "|-") or (not first and operator == "|"):
                return first or second  # one is the head of a model that has none of its own
            certain = not any(choices_in(selection))
            return _join(first, operator, second, text, roles, where, certain)
        case Choice():
            return _choose(selection, text, roles, where, chooser)
        case Role(path):
            names = _members(path, roles)
            if path in roles.members:
                return Selected(names)
        case Layers(path, index):
            names = _layers(path, index, roles)
        case Named(pattern):
            names = frozenset(name for name in roles.shapes if fnmatchcase(name, pattern))
    if not names:
        raise InputError(where, f"{show(selection)!r} matches nothing in this model", f"there are: {sizes(roles)}")
    return Selected(names)


def _choose(choice: Choice, text: str, roles: RoleTable, where: str, chooser: Chooser | None) -> Selected:
    of = _resolve(choice.of, text, roles, where, chooser).names
    units = _units(choice, of, roles)
    available = sum(prod(roles.shapes[name]) for unit in units for name in unit)
    available = available if choice.by == "element" else len(units)
    if available < (choice.amount if isinstance(choice.amount, int) else 1):
        kind = "matrices" if choice.score in MATRIX_SCORES and choice.by == "tensor" else f"{choice.by}s"
        what = f"{show(choice)!r} finds {available:,} {kind} to choose from"
        raise InputError(where, what, f"ask for less, or choose of more; there are: {sizes(roles)}")
    if choice.how == "lowest_layers":
        return Selected(frozenset().union(*units[: nearest([1] * len(units), choice.amount)]))
    if chooser is None:
        raise InputError(where, f"{show(choice)!r} is a choice, and none is made here", "name roles instead")
    return chooser.choose(choice, units, roles.shapes)


def _units(choice: Choice, of: frozenset[str], roles: RoleTable) -> list[frozenset[str]]:
    """Give the layers, bottom first, or the tensors, in the model's order, that a choice is made among."""
    if choice.score in MATRIX_SCORES:
        of = frozenset(name for name in of if len(roles.shapes[name]) > 1)
    if choice.by == "layer":
        return [layer & of for layer in roles.whole_layers if layer & of]
    return [frozenset({name}) for name in roles.shapes if name in of]


def nearest(sizes: Sequence[int], amount: float | int) -> int:
    """Give how many of these, from the first on, come nearest to a share of their sum; at least one.

    Of two equally near numbers the larger counts: 25% of six layers are two. A whole number is given back as it is.
    """
    if isinstance(amount, int):
        return amount
    sums = list(accumulate(sizes))
    return 1 + min(range(len(sums)), key=lambda last: (abs(sums[last] - amount * sums[-1]), -last))


def _members(path: str, roles: RoleTable) -> frozenset[str]:
    if path in roles.members:
        return roles.members[path]
    if path in roles.stacks:
        return frozenset().union(*roles.stacks[path])
    side, _, rest = path.partition(".")
    if side in SIDES and rest:
        return roles.members.get(side, frozenset()) & roles.members.get(rest, frozenset())
    return frozenset()


def _layers(path: str, index: int | slice, roles: RoleTable) -> frozenset[str]:
    layers = roles.stacks.get(path, ())
    if isinstance(index, slice):
        return frozenset().union(*layers[index])
    return layers[index] if -len(layers) <= index < len(layers) else frozenset()


def _join(
    left: Selected, operator: str, right: Selected, text: str, roles: RoleTable, where: str, certain: bool
) -> Selected:
    """Join two selections; what changes nothing is a mistake where that is `certain`, and not a matter of chance."""
    joined = {"|": left.__or__, "&": left.__and__, "-": left.__sub__}[operator](right)
    there = f"there are: {sizes(roles)}"
    if not joined:
        remedy = "change or drop one of them" if certain else "choose within one of them: top(rgn, 25%, of=attention)"
        raise InputError(where, f"{text!r} matches nothing: its parts cancel out", f"{remedy}; {there}")
    if certain and operator == "-" and not left & right:
        raise InputError(where, f"a part after '-' in {text!r} takes nothing away", f"drop it; {there}")
    if certain and operator == "|" and not (right - left and left - right):
        raise InputError(where, f"a part of {text!r} adds nothing: the other holds it already", f"drop it; {there}")
    return joined
