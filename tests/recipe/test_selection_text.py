"""Selections as text: what prints is read back, and what is wrong is explained."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloytune.expression import (
    ELEMENT_SCORES,
    PARTS,
    SCORES,
    SIDES,
    WORDS,
    Choice,
    Joined,
    Layers,
    Named,
    Role,
    Selection,
    choices_in,
    parse,
    roles_in,
)
from alloytune.expression import show as show_shortly
from alloytune.recipe.types.choosing import Scaled

PLAIN = [word for word in WORDS if word not in SIDES]
WITH_PARTS = [f"{role}.{part}" for role, parts in PARTS.items() for part in parts]
bounds = st.none() | st.integers(-40, 40)
slices = st.builds(slice, bounds, bounds, st.none() | st.integers(1, 5))
roles = st.builds(Role, st.sampled_from([*WORDS, *WITH_PARTS, *(f"{side}.{word}" for side in SIDES for word in PLAIN)]))
layers = st.builds(
    Layers, st.sampled_from(["layers", "encoder.layers", "decoder.layers"]), st.integers(-40, 40) | slices
)
named = st.builds(Named, st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12))
plain = st.recursive(
    roles | layers | named, lambda inner: st.builds(Joined, inner, st.sampled_from("|&-"), inner), max_leaves=3
)
amounts = st.integers(1, 99) | st.integers(1, 999).map(lambda number: number / 10 / 100)
wholes = st.sampled_from(["layer", "tensor"])
choices = (
    st.builds(Choice, st.sampled_from(["top", "bottom"]), amounts, wholes, plain, st.sampled_from(list(SCORES)))
    | st.builds(Choice, st.just("top"), amounts, st.just("element"), plain, st.sampled_from(ELEMENT_SCORES))
    | st.builds(Choice, st.just("random"), amounts, wholes | st.just("element"), plain)
    | st.builds(Choice, st.just("cycle"), amounts, wholes, plain)
    | st.builds(Choice, st.just("lowest_layers"), amounts, st.just("layer"), st.just(Role("layers")))
)
selections = st.recursive(
    roles | layers | named | choices,
    lambda inner: st.builds(Joined, inner, st.sampled_from("|&-"), inner),
    max_leaves=8,
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
        case Choice(how, amount, by, of, score):
            parts = [score] if score else []
            parts.append(str(amount) if isinstance(amount, int) else f"{round(1000 * amount) / 10}%")
            parts += [] if how == "lowest_layers" else [f"of={show(of)}", f"by={by}"]
            return f"{how}({', '.join(parts)})"


@given(selections)
def test_what_prints_is_read_back(selection: Selection) -> None:
    assert parse(show(selection)) == selection


@given(choices)
def test_a_choice_has_one_text(choice: Choice) -> None:
    (found,) = choices_in(parse(f"head | {show(choice)}"))
    assert parse(show_shortly(found)) == found == choice


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
        (
            "attention.qery | head",
            "unknown role 'attention.qery' in 'attention.qery | head'; did you mean 'attention.query'?",
        ),
        ("querry", "did you mean 'attention.query'?"),
        ("zebra", "attention.query, attention.key"),
        ("mlp.zebra", "there are mlp.up, mlp.gate, mlp.down"),
        ("head.query", "head has no parts"),
        ("head |", "write roles joined by |, & or -"),
        ("head[0]", "takes no [...]; only layers do"),
        ("layers[a]", "'a' in 'layers[a]' is not a layer number"),
        ("layers[::0]", "a step of 0"),
        ("layers[-2:].norm", "join with & instead"),
        ("head + mlp", "'head + mlp' in 'head + mlp' cannot stand in a selection"),
        ("name(head)", "cannot stand in a selection"),
        ("top(rgm, 5%)", "unknown score 'rgm' in 'top(rgm, 5%)'; did you mean 'rgn'?"),
        ("random(2, of=head - 'a')", "\"'a'\" in"),
        ("random(-1)", "'-1' in 'random(-1)' is no amount"),
        ("random(True)", "'True' in"),
        ("cycle(by=element)", "no end among single elements"),
        ("bottom(rgn, 1, by=element)", "'rgn' is a score of whole tensors"),
        ("random(1, by=layer, by=tensor)", "has too much"),
        ("random(*1)", "'*1'"),
        ("random(1, **head)", "write random(50%, by=layer)"),
        ("__import__('os')", "cannot stand in a selection"),
    ],
)
def test_messages(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("top(rgn, 25%)", "top(rgn, 25%, by=tensor, of=layers)"),
        ("random(2)", "random(2, by=tensor, of=layers)"),
        ("cycle()", "cycle(1, by=layer, of=layers)"),
    ],
)
def test_what_a_choice_means_where_nothing_is_said(text: str, same: str) -> None:
    assert parse(text) == parse(same)


def test_a_share_within_a_string_stays() -> None:
    assert parse('name("25%)") | name(\'a 5%, "b"\')') == Joined(Named("25%)"), "|", Named('a 5%, "b"'))


def test_rates_can_follow_every_score() -> None:
    assert set(Scaled.model_json_schema()["properties"]["scale"]["enum"]) == set(SCORES)
