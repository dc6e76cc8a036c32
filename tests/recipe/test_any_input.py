"""Whatever is given, reading ends in a recipe or in a RecipeError with problems that have places."""

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from alloytune.errors import Problem, RecipeError
from alloytune.recipe import shape
from alloytune.recipe.read import recipe_from, resolved
from alloytune.recipe.yaml_text import load

SOUND: dict[str, Any] = {
    "model": "bert",
    "data": {"train": "a.csv", "split": {"validation": 0.1, "test": "20%", "stratify": "label"}},
    "batch": 8,
    "stages": [
        {"name": "full", "train": "all", "rate": 1e-4, "until": {"epochs": 2, "patience": 1}},
        {
            "name": "lora",
            "attach": {"lora": {"rank": 4, "on": "mlp"}},
            "train": "adapter",
            "rates": {"adapter": 1e-3},
            "accept": {"gain": 0.1},
            "otherwise": {"retry": {"rate": "x0.5"}},
        },
        {
            "name": "both",
            "attach": [{"name": "b", "ia3": {}, "stack": True}, {"oft": {"block": 4}, "stack": True}],
            "train": "adapter.b | top(rgn, 25%, of=mlp)",
            "rate": {"scale": "snr", "largest": 1e-3},
            "score": {"batches": 4},
            "optimizer": {"galore": {"rank": 4}},
            "clip": {"norm": 1.0, "per": "group"},
            "mixout": {"share": 0.5},
            "until": {"epochs": 1, "patience": {"metric": "loss", "evaluations": 2}, "score": {"loss": 0.1}},
        },
        {"repeat": {"times": 2, "stages": [{"name": "fold", "merge": "oft", "train": "random(2, by=layer)"}]}},
        {"name": "wise", "drop": "b", "combine": {"how": "reset", "with": ["full"], "of": "layers[:1]"}},
    ],
}

keys = st.sampled_from([*shape.homes(), "lr", "epoch", "layers[0]", "a.b", "[]", ""]) | st.text(max_size=5)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["all", "10%"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=5
)


def holders(value: Any) -> list[Any]:
    """Every mapping and list within a value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if isinstance(value, dict | list) else []) + [found for item in inside for found in holders(item)]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_changed_recipes(data: st.DataObject) -> None:
    value = copy.deepcopy(SOUND)
    for _ in range(data.draw(st.integers(0, 4))):
        holder = data.draw(st.sampled_from(holders(value)))
        if isinstance(holder, dict):
            holder[data.draw(st.sampled_from([*holder, ""]) | keys)] = data.draw(values)
        elif holder:
            holder[data.draw(st.integers(0, len(holder) - 1))] = data.draw(values)
    problems: list[Problem] = []
    recipe = None
    try:
        recipe = recipe_from(value)
    except RecipeError as error:
        problems = error.problems
    assert (recipe is None) == bool(problems)
    assert all(problem.message and problem.source == "recipe" for problem in problems)
    if recipe is not None:
        assert recipe_from(resolved(recipe)) == recipe


@given(st.text(st.sampled_from("ab:- \n\t{}[],'\"#&*!|>%@`?~<1.")), st.text(max_size=10))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_explained(text: str, more: str) -> None:
    try:
        value, places = load(text + more, "a.yaml")
    except RecipeError as error:
        (problem,) = error.problems
        assert problem.line is None or problem.line <= (text + more).count("\n") + 2
    else:
        assert isinstance(value, dict)
        assert () in places.marks
