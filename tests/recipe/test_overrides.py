"""Values given by `--set` and by other options."""

from typing import Any

import pytest

from alloytune.errors import RecipeError
from alloytune.recipe.read import read_recipe
from alloytune.recipe.shipped import shipped_text
from alloytune.recipe.types.stage import Stage


def stage(*overrides: str, index: int = 0) -> Stage:
    return read_recipe("hybrid", overrides).recipe.stages[index]


def problems_of(*overrides: str, defaults: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_recipe("hybrid", overrides, defaults)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", ["stages.0.rate", "stages.full.rate", "stages[0].rate"])
def test_index_and_name(path: str) -> None:
    assert stage(f"{path}=1e-5").rate == 1e-5


def test_values_are_yaml() -> None:
    assert stage("stages.full.until={epochs: 2, patience: 1}").until.patience == 1
    assert stage("stages.full.train=layers[-2:] | head").train == "layers[-2:] | head"
    assert stage("stages.full.clip=").clip is None
    assert stage("stages.full.clip=null").clip is None
    assert stage("stages.adapter.attach.lora.rank=4", index=2).attach.lora.rank == 4  # type: ignore[union-attr]


def test_a_sign_stands_for_itself() -> None:
    recipe = read_recipe("full", ("task.multilabel.separator=,", "data.labels=topics"), {"model": "bert"}).recipe
    assert recipe.model_dump()["task"]["multilabel"]["separator"] == ","
    assert stage("stages.full.clip=~").clip is None  # YAML's null


def test_mappings_on_the_way_are_made() -> None:
    assert stage("stages.full.accept.gain=0.5").accept.gain == 0.5  # type: ignore[union-attr]
    assert stage("stages.full.until.minutes=2").until.epochs == stage().until.epochs


@pytest.mark.parametrize("key", ["head", "attention.query", "layers[-2:]", "layers[0]"])
def test_keys_of_rates(key: str) -> None:
    assert stage(f"stages.full.rates.{key}=1e-5").rates == {key: 1e-5}
    assert stage(f'stages.full.rates["{key}"]=1e-5').rates == {key: 1e-5}


def test_defaults_replace_the_file_and_none_is_not_given() -> None:
    recipe = read_recipe("hybrid", (), {"model": "bert", "seed": None, "data": {"label": "mood", "test": None}}).recipe
    assert (recipe.model, recipe.seed, recipe.data.label, recipe.data.test) == ("bert", 0, "mood", None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("oops", "--set oops: 'oops' is not KEY=VALUE; write --set stages.0.rate=1e-4"),
        ("=3", "--set =3: '=3' is not KEY=VALUE; write --set stages.0.rate=1e-4"),
        (
            "stages..rate=1",
            "--set stages..rate=1: 'stages..rate' is not a path of keys; write one such as stages.0.rate",
        ),
        ("batch=[1", "--set batch=[1: a bracket that is opened here is never closed"),
        ("stages.fll.rate=1", "--set stages.fll.rate=1: there is no stage 'fll'; did you mean 'full'?"),
        (
            "stages.3.rate=1",
            "--set stages.3.rate=1: there is no stage '3'; there are full, partial, adapter, or 0 to 2",
        ),
        (
            "stages.0.rate=fast",
            "--set stages.0.rate=fast: stages[0].rate: 'fast' is not a number above 0, such as 2e-4 or 'auto' or "
            "a mapping such as {scale: rgn}",
        ),
        (
            "stages.full.lr=1e-4",
            "--set stages.full.lr=1e-4: stages[0].lr: unknown key 'lr'; did you mean 'rate'?",
        ),
        (
            "stages.full.untl.epochs=1",
            "--set stages.full.untl.epochs=1: stages[0].untl: unknown key 'untl'; did you mean 'until'?",
        ),
        (
            "stages.full.rate.x=1",
            "--set stages.full.rate.x=1: nothing stands below 'stages[0].rate', which is 'auto'; end the path there",
        ),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    assert problems_of(override) == [message]


def test_mistakes_of_the_file_keep_their_line() -> None:
    name, train = problems_of("stages.partial.name=full", "stages.adapter.attach=null")
    lines = shipped_text("hybrid").splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.strip().startswith("train: adapter"))
    assert name.startswith("--set stages.partial.name=full: stages[1].name: 'full' is the name of an earlier stage")
    assert train.startswith(f"shipped/hybrid.yaml:{line}:12: stages[2].train: 'adapter' is named, but none is attached")


@pytest.mark.parametrize(
    ("overrides", "defaults"),
    [
        (["seed=1", "seed=2"], {}),
        (["stages.0.rate=1", "stages.full.rate=2"], {}),
        (["data.label=a"], {"data": {"label": "b"}}),
        (["stages.0.until.epochs=1", "stages.0.until={epochs: 2}"], {}),
    ],
)
def test_nothing_is_given_twice(overrides: list[str], defaults: dict[str, Any]) -> None:
    (message,) = problems_of(*overrides, defaults=defaults)
    assert "given twice" in message


def test_a_part_given_after_the_whole() -> None:
    assert stage("stages.0.until={epochs: 2}", "stages.0.until.patience=1").until.epochs == 2
