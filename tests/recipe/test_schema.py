"""The schema and the reference page are those of the types."""

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from alloytune.recipe import shape
from alloytune.recipe.nearest import REMARKS, SYNONYMS, unknown_key
from alloytune.recipe.read import read_recipe, recipe_from
from alloytune.recipe.schema import DOCS, documents
from alloytune.recipe.shipped import shipped_names, shipped_text
from alloytune.recipe.tasks import TASKS
from alloytune.recipe.types.recipe import Recipe
from alloytune.recipe.yaml_text import load

EXAMPLES = sorted((DOCS.parent / "examples").glob("*.yaml"))
WRITTEN = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES} | {
    f"shipped {name}": shipped_text(name) for name in shipped_names()
}


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
    for word in ("rollback", "retry", "skip", "stop"):
        assert f"| `{word}` |" in page
    recipes = documents()["recipes.md"]
    for name in shipped_names():
        assert f"\n## {name}\n" in recipes


def test_examples_on_the_page_read() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", documents()["recipe-reference.md"], re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        assert recipe_from(load(example, "page")[0]).stages


def test_examples_of_joint_objectives_read() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (DOCS / "joint.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 5
    recipes = [recipe_from(load(example, "page")[0]) for example in examples]
    assert recipes[0].stages[0].joint == recipe_from(load(shipped_text("joint"), "joint")[0]).stages[0].joint
    assert recipes[1].beside(0) == {"full": "joint.full"}


def test_the_examples_of_joint_are_right() -> None:
    page = documents()["recipe-reference.md"]
    examples = [text.replace("\\|", "|") for text in re.findall(r"\| `(joint: .*?)` \|", page)]
    assert len(examples) == 6
    for text in examples:
        value, _ = load(text, "page")
        recipe_from({"stages": [{"name": "only", "attach": {"lora": {}}, "train": "all | adapter", **value}]})


def test_the_examples_of_adapters_are_right() -> None:
    page = documents()["recipe-reference.md"]
    examples = [text.replace("\\|", "|") for text in re.findall(r"\| `(attach: .*?)` \|", page)]
    assert len(examples) == 10
    for text in examples:
        value, _ = load(text, "page")
        recipe_from({"stages": [{"name": "only", "train": "adapter", **value}]})


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


def test_the_recipe_of_the_readme_reads() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert [stage.name for stage in recipe_from(load(example, "README.md")[0]).stages] == ["full", "partial", "adapter"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_read(example: Path) -> None:
    assert read_recipe(example).recipe.about


def marked(text: str) -> list[str]:
    """Give the places in a recipe that an editor with the schema marks."""
    return [error.json_path for error in Draft202012Validator(shape.schema()).iter_errors(load(text, "recipe")[0])]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(shape.schema())


@pytest.mark.parametrize("name", WRITTEN)
def test_the_schema_takes_what_reads(name: str) -> None:
    assert marked(WRITTEN[name]) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("stages: 3", "$.stages"),
        ("modle: bert\nstages: [{name: full, train: all}]", "$"),
        ("seed: soon\nstages: [{name: full, train: all}]", "$.seed"),
        ("stages: [{name: full, train: all, raet: 1e-3}]", "$.stages[0]"),
        ("stages: [{name: full, train: all, rate: fast}]", "$.stages[0]"),
        ("stages: [{name: full, train: all, until: {epochs: 0}}]", "$.stages[0]"),
        ("stages: [{name: full, train: all, optimizer: adam}]", "$.stages[0]"),
        ("stages: [{name: low, train: adapter, attach: {lora: {rank: two}}}]", "$.stages[0]"),
        ("stages: [{name: full, train: all, otherwise: {retry: {rate: 0.3}}}]", "$.stages[0]"),
    ],
)
def test_the_schema_takes_no_wrong_recipe(text: str, place: str) -> None:
    assert marked(text) == [place]


def test_every_task_has_an_example_on_its_page() -> None:
    page = (DOCS / "tasks.md").read_text(encoding="utf-8")
    examples = [load(text, "page")[0] for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert {recipe_from(example).task_name for example in examples} == set(TASKS)
    assert [heading for heading in re.findall(r"^## (.*)$", page, re.MULTILINE) if heading not in TASKS] == []
