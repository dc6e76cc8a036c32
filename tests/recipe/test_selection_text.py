"""Selections as text: what prints is read back, and what is wrong is explained."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloytune.selection import PARTS, SIDES, WORDS, Joined, Layers, Named, Role, Selection, parse, roles_in

PLAIN = [word for word in WORDS if word not in SIDES]
WITH_PARTS = [f"{role}.{part}" for role, parts in PARTS.items() for part in parts]
bounds = st.none() | st.integers(-40, 40)
slices = st.builds(slice, bounds, bounds, st.none() | st.integers(1, 5))
roles = st.builds(Role, st.sampled_from([*WORDS, *WITH_PARTS, *(f"{side}.{word}" for side in SIDES for word in PLAIN)]))
layers = st.builds(
    Layers, st.sampled_from(["layers", "encoder.layers", "decoder.layers"]), st.integers(-40, 40) | slices
)
named = st.builds(Named, st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12))
selections = st.recursive(
    roles | layers | named, lambda inner: st.builds(Joined, inner, st.sampled_from("|&-"), inner), max_leaves=8
)


def show(selection: Selection) -> str:
    """Print with every bracket that could be needed."""
    match selection:
        case Role(path):
            return path
        case Layers(path, slice() as index):
            parts = [index.start, index.stop] + ([] if index.step is None else [index.step])
            return f"{path}[{':'.join('' if part is None else str(part) for part in parts)}]"
        case Layers(path, index):
            return f"{path}[{index}]"
        case Named(pattern):
            return f"name({pattern!r})"
        case Joined(left, operator, right):
            return f"({show(left)}) {operator} ({show(right)})"


@given(selections)
def test_what_prints_is_read_back(selection: Selection) -> None:
    assert parse(show(selection)) == selection


@given(selections, selections)
def test_roles_are_named_left_to_right(left: Selection, right: Selection) -> None:
    both = [*roles_in(left), *roles_in(right)]
    assert list(roles_in(parse(f"({show(left)}) | ({show(right)})"))) == both


@given(st.text(max_size=30))
def test_any_text_is_read_or_explained(text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - that it is a ValueError is the test; most texts are none


def test_operators_bind_as_in_python() -> None:
    assert parse("head | mlp & norm") == Joined(Role("head"), "|", Joined(Role("mlp"), "&", Role("norm")))
    assert parse("all - head - norm") == Joined(Joined(Role("all"), "-", Role("head")), "-", Role("norm"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("heed", "unknown role 'heed' in 'heed'; did you mean 'head'?"),
        ("zebra", "there are all, embeddings"),
        ("attention.qery", "did you mean 'query'?"),
        ("head.query", "head has no parts"),
        ("head |", "write roles joined by |, & or -"),
        ("head[0]", "takes no [...]; only layers do"),
        ("layers[a]", "'a' in 'layers[a]' is not a layer number"),
        ("layers[::0]", "a step of 0"),
        ("layers[-2:].norm", "join with & instead"),
        ("head + mlp", "'head + mlp' in 'head + mlp' cannot stand in a selection"),
        ("name(head)", "cannot stand in a selection"),
        ("__import__('os')", "cannot stand in a selection"),
    ],
)
def test_messages(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(text)
