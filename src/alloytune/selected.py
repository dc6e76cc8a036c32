"""What a selection holds: whole parameters by name, and parts of others by a mask."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

Shapes = Mapping[str, tuple[int, ...]]


class Mask(Protocol):
    """Booleans in a parameter's shape, such as a torch tensor: what is selected of it."""

    def __and__(self, other: Any) -> Any: ...
    def __or__(self, other: Any) -> Any: ...
    def __invert__(self) -> Any: ...
    def any(self) -> Any: ...
    def all(self) -> Any: ...
    def sum(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class Selected:
    """A set of elements. `names` are the parameters of which it holds any; `masks` say which, where not all.

    A mask holds some and not all of its parameter. `|`, `&` and `-` are exact, element by element.
    """

    names: frozenset[str]
    masks: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parts(cls, masks: Mapping[str, Any]) -> "Selected":
        """Give what some masks hold, which may be all or nothing of a parameter."""
        return _tidy(frozenset(masks), masks)

    def __bool__(self) -> bool:
        return bool(self.names)

    def __or__(self, other: "Selected") -> "Selected":
        whole = (self.names - self.masks.keys()) | (other.names - other.masks.keys())
        both = self.masks.keys() & other.masks.keys()
        masks = {name: mask for part in (self, other) for name, mask in part.masks.items() if name not in whole}
        masks |= {name: self.masks[name] | other.masks[name] for name in both}
        return _tidy(self.names | other.names, masks)

    def __and__(self, other: "Selected") -> "Selected":
        names = self.names & other.names
        masks = {name: mask for part in (self, other) for name, mask in part.masks.items() if name in names}
        masks |= {name: self.masks[name] & other.masks[name] for name in self.masks.keys() & other.masks.keys()}
        return _tidy(names, masks)

    def __sub__(self, other: "Selected") -> "Selected":
        left = {name: ~mask for name, mask in other.masks.items()}  # of what `other` holds in part
        return self & Selected((self.names - other.names) | left.keys(), left)

    def counts(self, shapes: Shapes) -> dict[str, int]:
        """Give the number of selected elements of every parameter."""
        return {
            name: int(self.masks[name].sum()) if name in self.masks else prod(shapes[name])
            for name in shapes
            if name in self.names
        }


def _tidy(names: frozenset[str], masks: Mapping[str, Mask]) -> Selected:
    """Drop masks that hold all, and names whose mask holds nothing."""
    empty = {name for name, mask in masks.items() if not bool(mask.any())}
    return Selected(
        names - empty,
        {name: mask for name, mask in masks.items() if name not in empty and not bool(mask.all())},
    )
