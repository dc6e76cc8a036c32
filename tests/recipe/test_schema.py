"""The schema and the reference page are those of the types."""

import pytest

from alloytune.recipe import shape
from alloytune.recipe.nearest import REMARKS, SYNONYMS, unknown_key
from alloytune.recipe.schema import DOCS, documents
from alloytune.recipe.shipped import shipped_names
from alloytune.recipe.types import Recipe


@pytest.mark.parametrize("name", documents())
def test_documents_are_up_to_date(name: str) -> None:
    """`python -m alloytune.recipe.schema` rewrites them."""
    assert (DOCS / name).read_text(encoding="utf-8") == documents()[name]


def test_every_key_is_described() -> None:
    made = shape.schema()
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for part in (made, *made["$defs"].values()):
        assert part["description"]
        assert all(node["description"] for node in part["properties"].values())


def test_every_key_and_choice_is_on_the_page() -> None:
    page = documents()["recipe-reference.md"]
    for key in shape.homes():
        assert f"| `{key}` |" in page
    for word in ("rollback", "retry", "skip", "stop", *shipped_names()):
        assert f"| `{word}` |" in page


def test_shape_follows_paths() -> None:
    assert shape.keys(()) == tuple(Recipe.model_fields)
    assert "rank" in shape.keys(("stages", 3, "attach", "lora"))
    assert shape.keys(("stages", 0, "otherwise")) == ("retry",)
    assert shape.takes_any_key(("stages", 0, "rates"))
    assert shape.at(("nothing", "here")) == []


def test_synonyms_lead_to_keys() -> None:
    """No word of another tool shadows one of ours, and each leads to a key that there is."""
    known = shape.homes()
    assert [word for word, key in SYNONYMS.items() if key not in known] == []
    assert [word for word in [*SYNONYMS, *REMARKS] if word in known] == []
    assert list(SYNONYMS) == sorted(SYNONYMS)
    for word, key in SYNONYMS.items():
        assert key in unknown_key((word,)).message
