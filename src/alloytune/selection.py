"""Selections: sets of parameters, written as expressions over roles.

`layers[-2:] | head`, `(attention | mlp) & layers[:3]`, `all - embeddings`, `name("*.pooler.*")`.

An expression is valid Python, so the standard library reads it; a short whitelist says what may stand in it.
Nothing here knows torch: an expression is resolved against any object that maps roles to parameter names.
"""

import ast
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Protocol

from alloytune.errors import InputError

SIDES = ("encoder", "decoder", "cross")
PARTS = {"attention": ("query", "key", "value", "output"), "mlp": ("up", "gate", "down")}
WORDS = (
    "all",
    "embeddings",
    "layers",
    "attention",
    "mlp",
    "norm",
    "bias",
    "head",
    "pooler",
    "adapter",
    *SIDES,
)


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
        """`layers`, `encoder.layers`, `decoder.layers` to one set of names per layer, bottom first."""


@dataclass(frozen=True)
class Role:
    """All parameters of a role, such as `attention.query` or `encoder.norm`."""

    path: str


@dataclass(frozen=True)
class Layers:
    """Some layers of a stack, by a Python slice or one index."""

    path: str
    index: int | slice

    def __hash__(self) -> int:
        return hash((self.path, str(self.index)))


@dataclass(frozen=True)
class Named:
    """Parameters whose name matches a shell pattern."""

    pattern: str


@dataclass(frozen=True)
class Joined:
    """Two selections and `|`, `&` or `-` between them."""

    left: "Selection"
    operator: str
    right: "Selection"


Selection = Role | Layers | Named | Joined

_OPERATORS: dict[type[ast.operator], str] = {ast.BitOr: "|", ast.BitAnd: "&", ast.Sub: "-"}


def parse(text: str) -> Selection:
    """Read an expression; raises ValueError that says what is wrong and what was probably meant."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(
            f"{text!r} is not a selection ({error.msg}); write roles joined by |, & or -, such as 'layers[-2:] | head'"
        ) from None
    except RecursionError:
        raise ValueError("the selection is nested too deeply to be read; write it with fewer brackets") from None
    return _read(tree.body, text)


def roles_in(selection: Selection) -> Iterator[str]:
    """Give the first word of every role that an expression names, left to right."""
    match selection:
        case Role(path) | Layers(path):
            yield path.split(".")[0]
        case Joined(left, _, right):
            yield from roles_in(left)
            yield from roles_in(right)


def resolve(text: str, roles: RoleTable, where: str) -> frozenset[str]:
    """Give the names of the parameters that an expression selects.

    Raises InputError, with the roles there are and their sizes, when the expression or a part of it matches
    nothing, or when a part changes nothing (`all | head`: the head is in `all` already).
    """
    return _resolve(parse(text), text, roles, where)


def sizes(roles: RoleTable) -> str:
    """Give the roles there are with their parameter counts, as `head 1,155, layers[0:6] 10,646,784, ...`."""
    counted = [
        f"{role} {sum(prod(roles.shapes[name]) for name in names):,}" for role, names in sorted(roles.members.items())
    ]
    stacks = [f"{path}[0:{len(layers)}]" for path, layers in sorted(roles.stacks.items())]
    return ", ".join(counted + stacks)


def _read(node: ast.expr, text: str) -> Selection:
    match node:
        case ast.Name() | ast.Attribute():
            return Role(_path(node, text))
        case ast.Subscript(value=value, slice=index):
            path = _path(value, text)
            if path.split(".")[-1] != "layers":
                raise ValueError(f"{path!r} in {text!r} takes no [...]; only layers do, such as layers[-2:]")
            return Layers(path, _index(index, text))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return Joined(_read(left, text), _OPERATORS[type(operator)], _read(right, text))
        case ast.Call(func=ast.Name(id="name"), args=[ast.Constant(value=str() as pattern)], keywords=[]):
            return Named(pattern)
    raise ValueError(
        f"{ast.unparse(node)!r} in {text!r} cannot stand in a selection; "
        "it takes roles, layers[...], name('...'), |, &, - and brackets"
    )


def _path(node: ast.expr, text: str) -> str:
    """Give a dotted role, checked word by word."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError(
            f"{ast.unparse(node)!r} in {text!r} cannot stand before a dot; "
            "join with & instead, such as 'layers[-2:] & norm'"
        )
    words.insert(0, node.id)
    first = words[1] if words[0] in SIDES and len(words) > 1 else words[0]
    _require_word(words[0], WORDS, text)
    _require_word(first, WORDS, text)
    rest = words[words.index(first) + 1 :]
    if rest and first != "adapter":
        _require_word(rest[0], PARTS.get(first, ()), text, before=first)
    return ".".join(words)


def _require_word(word: str, known: tuple[str, ...], text: str, before: str = "") -> None:
    if word in known:
        return
    shown = f"{before}.{word}" if before else word
    if not known:
        raise ValueError(f"{shown!r} in {text!r}: {before} has no parts")
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    meant = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(known)}"
    raise ValueError(f"unknown role {shown!r} in {text!r}; {meant}")


def _index(node: ast.expr, text: str) -> int | slice:
    if isinstance(node, ast.Slice):
        bounds = [None if part is None else _integer(part, text) for part in (node.lower, node.upper, node.step)]
        if bounds[2] == 0:
            raise ValueError(f"a step of 0 in {text!r} selects no layer; leave the step out")
        return slice(*bounds)
    return _integer(node, text)


def _integer(node: ast.expr, text: str) -> int:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(
            f"{ast.unparse(node)!r} in {text!r} is not a layer number; write layers[0], layers[-2:] or layers[:6:2]"
        )
    return value


def _resolve(selection: Selection, text: str, roles: RoleTable, where: str) -> frozenset[str]:
    match selection:
        case Joined(left, operator, right):
            return _join(_resolve(left, text, roles, where), operator, _resolve(right, text, roles, where), text, where)
        case Role(path):
            names = _members(path, roles)
        case Layers(path, index):
            names = _layers(path, index, roles)
        case Named(pattern):
            names = frozenset(name for name in roles.shapes if fnmatchcase(name, pattern))
    if not names:
        raise InputError(where, f"{_show(selection)!r} matches nothing in this model", f"there are: {sizes(roles)}")
    return names


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


def _join(left: frozenset[str], operator: str, right: frozenset[str], text: str, where: str) -> frozenset[str]:
    names = {"|": left | right, "&": left & right, "-": left - right}[operator]
    if not names:
        raise InputError(where, f"{text!r} matches nothing: its parts cancel out", "change or drop one of them")
    if operator == "-" and names == left:
        raise InputError(where, f"a part after '-' in {text!r} takes nothing away", "drop it")
    if operator == "|" and (right <= left or left <= right):
        raise InputError(where, f"a part of {text!r} adds nothing: the other holds it already", "drop it")
    return names


def _show(selection: Selection) -> str:
    match selection:
        case Role(path):
            return path
        case Layers(path, slice() as index):
            bounds = ":".join("" if part is None else str(part) for part in (index.start, index.stop, index.step))
            return f"{path}[{bounds.removesuffix(':')}]" if index.step is None else f"{path}[{bounds}]"
        case Layers(path, index):
            return f"{path}[{index}]"
        case Named(pattern):
            return f'name("{pattern}")'
        case Joined(left, operator, right):
            return f"({_show(left)} {operator} {_show(right)})"
