"""A model's parameters by module, with roles, shapes and counts: as a tree for the terminal, and as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree


@dataclass(frozen=True)
class Parameter:
    """A parameter, the roles it plays, and how many of its elements are meant."""

    name: str
    shape: tuple[int, ...]
    roles: tuple[str, ...]
    selected: int

    @property
    def count(self) -> int:
        """Give its elements."""
        return prod(self.shape)


def parameters(
    shapes: Mapping[str, tuple[int, ...]], members: Mapping[str, frozenset[str]], selected: Mapping[str, int]
) -> list[Parameter]:
    """List the parameters, in the model's order, with their roles (all but `all` and what an inner role says)."""
    found = []
    for name, shape in shapes.items():
        roles = [role for role, names in sorted(members.items()) if name in names and role not in ("all", "layers")]
        inner = [role for role in roles if not any(other.startswith(f"{role}.") for other in roles)]
        found.append(Parameter(name, shape, tuple(inner), selected.get(name, 0)))
    return found


def roles_json(found: list[Parameter], remarks: tuple[str, ...]) -> dict[str, Any]:
    """Give the same as plain values."""
    return {
        "parameters": [
            {"name": p.name, "shape": list(p.shape), "roles": list(p.roles), "count": p.count, "selected": p.selected}
            for p in found
        ],
        "count": sum(parameter.count for parameter in found),
        "selected": sum(parameter.selected for parameter in found),
        "remarks": list(remarks),
    }


@dataclass
class _Module:
    parts: dict[str, "_Module"] = field(default_factory=dict)
    parameters: list[Parameter] = field(default_factory=list)

    @property
    def selected(self) -> int:
        own = sum(parameter.selected for parameter in self.parameters)
        return own + sum(part.selected for part in self.parts.values())


def roles_tree(title: str, found: list[Parameter], remarks: tuple[str, ...]) -> RenderableType:
    """Draw what is selected, module by module, with the totals and what a name does not tell (tied weights)."""
    root = _Module()
    for parameter in (parameter for parameter in found if parameter.selected):
        module = root
        for word in parameter.name.split(".")[:-1]:
            module = module.parts.setdefault(word, _Module())
        module.parameters.append(parameter)
    whole = sum(parameter.count for parameter in found)
    tree = Tree(Text.assemble((title, "bold"), f"  {root.selected:,} of {whole:,} ({root.selected / whole:.1%})"))
    _draw(root, tree)
    return Group(tree, *(Text(f"note: {remark}", style="yellow") for remark in remarks))


def _draw(module: _Module, tree: Tree) -> None:
    for parameter in module.parameters:
        last = parameter.name.rpartition(".")[2]
        shape = " x ".join(map(str, parameter.shape)) or "scalar"
        of = "" if parameter.selected == parameter.count else f"{parameter.selected:,} of "
        line = Text.assemble(last, (f"  {shape}", "dim"), f"  {of}{parameter.count:,}")
        tree.add(line.append(f"  {', '.join(parameter.roles)}", style="cyan"))
    for name, part in module.parts.items():
        path, inner = name, part
        while len(inner.parts) == 1 and not inner.parameters:  # a module that only holds another takes no line
            word, inner = next(iter(inner.parts.items()))
            path = f"{path}.{word}"
        _draw(inner, tree.add(Text.assemble((path, "bold"), f"  {inner.selected:,}")))
