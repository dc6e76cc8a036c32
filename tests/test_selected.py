"""Sets of elements join as sets do, however they are kept."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from alloytune.selected import Selected

SHAPES = {"a": (2, 2), "b": (3,), "c": (1,)}
Elements = dict[str, list[bool]]

elements = st.fixed_dictionaries(
    {name: st.lists(st.booleans(), min_size=n, max_size=n) for name, n in {"a": 4, "b": 3, "c": 1}.items()}
)


def selected(given: Elements) -> Selected:
    return Selected.parts({name: torch.tensor(mask).reshape(SHAPES[name]) for name, mask in given.items()})


def held(value: Selected) -> set[tuple[str, int]]:
    """Give every element as a pair; masks hold some and not all, and have their parameter's shape."""
    found = set()
    for name in value.names:
        mask = value.masks.get(name, torch.ones(SHAPES[name], dtype=torch.bool))
        assert mask.shape == SHAPES[name]
        assert name not in value.masks or (mask.any() and not mask.all())
        found |= {(name, number) for number, is_in in enumerate(mask.flatten().tolist()) if is_in}
    assert value.masks.keys() <= value.names
    return found


@given(elements, elements)
def test_joins_are_set_operations(one: Elements, other: Elements) -> None:
    left, right = selected(one), selected(other)
    assert held(left | right) == held(left) | held(right)
    assert held(left & right) == held(left) & held(right)
    assert held(left - right) == held(left) - held(right)
    assert bool(left) == bool(held(left))
    assert sum(left.counts(SHAPES).values()) == len(held(left))
