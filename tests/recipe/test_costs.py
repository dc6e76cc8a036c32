"""The costs that are shown are those of the recipes as they are."""

from alloytune.recipe.costs import fingerprint, measured
from alloytune.recipe.shipped import shipped_names, shipped_text


def test_every_shipped_recipe_was_measured_as_it_is() -> None:
    """`benchmarks/recipes.py` measures what is new or has changed; `python -m alloytune.recipe.schema` shows it."""
    found = {name: word for name, (_, word) in measured().items()}
    assert found == {name: fingerprint(shipped_text(name)) for name in shipped_names()}


def test_costs_are_plausible() -> None:
    costs = {name: cost for name, (cost, _) in measured().items()}
    assert (costs["full"].trained_share, costs["full"].relative) == (1.0, 1.0)
    assert costs["head"].trained_share < costs["bitfit"].trained_share < costs["lora"].trained_share < 0.05
    assert costs["head"].relative < costs["last-layers"].relative < costs["lora"].relative < 1
    assert 1.9 < costs["r-drop"].relative < 2.1


def test_what_a_recipe_says_about_itself_costs_nothing() -> None:
    text = shipped_text("lora")
    assert fingerprint(text.replace("compact", "quality").replace("LoRA on", "Low rank on")) == fingerprint(text)
    assert fingerprint(text.replace("rank: 8", "rank: 16")) != fingerprint(text)
