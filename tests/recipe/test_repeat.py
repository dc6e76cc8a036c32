"""Blocks that repeat: written out when the recipe is read, with mistakes at the lines of the block."""

from pathlib import Path
from typing import Any

import pytest

from alloytune.errors import RecipeError
from alloytune.recipe.adapters import standings_before
from alloytune.recipe.read import read_recipe, recipe_from, resolved
from alloytune.recipe.types.recipe import Recipe

BLOCK = """\
stages:
  - {name: warm, train: head}
  - repeat:
      times: 2
      stages:
        - {name: lora, attach: {lora: {}}, train: adapter, rate: 1e-3}
        - {name: fold, merge: true, combine: {how: interpolate, with: [warm, fold], weight: 0.5}}
"""


def read(folder: Path, text: str, *overrides: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return read_recipe(str(file), overrides).recipe


def problems(folder: Path, text: str, *overrides: str) -> list[tuple[int | None, str, str]]:
    with pytest.raises(RecipeError) as caught:
        read(folder, text, *overrides)
    return [(problem.line, problem.path, problem.message) for problem in caught.value.problems]


def names(recipe: Recipe) -> list[str]:
    return [stage.name for stage in recipe.stages]


def test_a_block_is_written_out(tmp_path: Path) -> None:
    recipe = read(tmp_path, BLOCK)
    assert names(recipe) == ["warm", "lora-1", "fold-1", "lora-2", "fold-2"]
    combines = [stage.combine.with_ for stage in recipe.stages if stage.combine]
    assert combines == [["warm", "fold-1"], ["warm", "fold-2"]]
    none, first, second = (frozenset(places) for places in ((), [(1, 0)], [(3, 0)]))
    assert standings_before(recipe.stages) == [{none}, {none}, {first}, {none}, {second}]
    value = resolved(recipe)
    assert [stage["name"] for stage in value["stages"]] == names(recipe)
    assert "rate" not in value["stages"][2]
    assert recipe_from(value) == recipe


def test_stages_that_are_scored_are_those_of_the_same_round(tmp_path: Path) -> None:
    text = (
        "stages:\n  - repeat:\n      times: 2\n      stages:\n        - {name: full, train: all}\n"
        '        - {name: some, train: "top(weight_change, 5%)", score: {after: full}}\n'
    )
    assert [stage.score.after for stage in read(tmp_path, text).stages] == [None, "full-1", None, "full-2"]


def test_overrides_reach_into_a_block(tmp_path: Path) -> None:
    assert len(read(tmp_path, BLOCK, "stages.1.repeat.times=3").stages) == 7
    recipe = read(tmp_path, BLOCK, "stages.1.repeat.stages.lora.rate=0.5")
    assert [stage.rate for stage in recipe.stages if stage.name.startswith("lora")] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "words"),
    [
        ("times: 2", "times: 0", 4, "stages[1].repeat.times", "at least 1"),
        ("train: adapter", "train: adaptr", 6, "stages[1].repeat.stages[0].train", "'adapter'"),
        ("[warm, fold]", "[wram, fold]", 7, "stages[1].repeat.stages[1].combine.with[0]", "did you mean 'warm'?"),
        ("merge: true, ", "", 6, "stages[1].repeat.stages[0].attach", "'lora-1' is still attached"),
        ("name: lora", "name: fold", 7, "stages[1].repeat.stages[1].name", "'fold-1'"),
        ("  - repeat:", "  - rate: 3\n    repeat:", 3, "stages[1].rate", "cannot stand beside `repeat`"),
    ],
)
def test_mistakes_have_the_lines_of_the_block(
    old: str, new: str, line: int, path: str, words: str, tmp_path: Path
) -> None:
    found = problems(tmp_path, BLOCK.replace(old, new))
    assert (line, path) in [problem[:2] for problem in found]
    assert len({problem[1] for problem in found}) == len(found)  # every round makes it, and it is told once
    assert words in next(message for _, where, message in found if where == path)


def test_a_block_may_leave_its_adapter(tmp_path: Path) -> None:
    """In the first round alone, all would be well."""
    value: dict[str, Any] = {"name": "lora", "attach": {"lora": {}}, "train": "adapter"}
    once = {"stages": [{"repeat": {"times": 1, "stages": [value]}}, {"name": "last", "train": "adapter"}]}
    assert names(recipe_from(once)) == ["lora-1", "last"]
    with pytest.raises(RecipeError, match=r"stages\[0\].repeat.stages\[0\].attach: .*'lora-1' is still attached"):
        recipe_from({"stages": [{"repeat": {"times": 2, "stages": [value]}}]})
