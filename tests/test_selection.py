"""What a selection holds, and when it is refused."""

from pathlib import Path

import pytest

from alloytune.errors import InputError
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.roles import Roles, find_roles
from alloytune.selection import resolve
from conftest import TASK


@pytest.fixture(scope="module")
def roles(bert: Path) -> Roles:
    model, _ = load_model(TASK.auto_class, str(bert), load_tokenizer(str(bert)), 0, **TASK.config)
    return find_roles(model)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("layers[-1:]", "layers[1]"),
        ("layers", "layers[0] | layers[1]"),
        ("layers[::-1]", "layers[0:2]"),
        ("all - layers - embeddings - pooler", "head"),
        ("(attention | mlp) & layers[0]", "attention & layers[0] | mlp & layers[0]"),
        ('name("*.pooler.*")', "pooler"),
        ("attention.query", 'name("*.attention.self.query.*")'),
    ],
)
def test_two_ways_to_say_it(roles: Roles, text: str, same: str) -> None:
    assert resolve(text, roles, "train") == resolve(same, roles, "train") != frozenset()


def test_joins_are_set_operations(roles: Roles) -> None:
    attention, bias = (resolve(text, roles, "train") for text in ("attention", "bias"))
    assert resolve("attention & bias", roles, "train") == attention & bias
    assert resolve("attention | bias", roles, "train") == attention | bias
    assert resolve("attention - bias", roles, "train") == attention - bias


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers[5:]", ["'layers[5:]' matches nothing", "layers[0:2]", "embeddings 2,000"]),
        ("layers[7] | head", ["'layers[7]' matches nothing"]),
        ("cross", ["'cross' matches nothing"]),
        ("adapter", ["'adapter' matches nothing"]),
        ('head | name("*.nowhere")', ['name("*.nowhere")', "matches nothing"]),
        ("head & embeddings", ["parts cancel out"]),
        ("all | head", ["adds nothing"]),
        ("head - embeddings", ["takes nothing away"]),
    ],
)
def test_what_holds_nothing_is_refused(roles: Roles, text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve(text, roles, "stages[0].train")
    assert str(caught.value).startswith("stages[0].train: ")
    for word in words:
        assert word in str(caught.value)
