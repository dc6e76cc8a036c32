"""Whatever recipe is carried out on whatever model, what must always be true is true."""

import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, reject, settings
from hypothesis import strategies as st

from alloytune.build.session import Session
from alloytune.errors import InputError
from alloytune.evaluate.predict import raw_outputs
from alloytune.models.reload import load_folder
from alloytune.models.save import Places, save_tuned
from alloytune.models.verify import difference
from alloytune.recipe.read import recipe_from
from architectures import ARCHITECTURES
from flows.test_resume import MEASURED, weights
from properties.carried_out import Witness, assert_same, begin, carry_out
from properties.random_moves import CHOSEN
from properties.random_recipes import Model, cases

SIZES = {
    "bert": ("num_hidden_layers", "hidden_size"),
    "gpt2": ("n_layer", "n_embd"),
    "llama": ("num_hidden_layers", "hidden_size"),
    "t5": ("num_layers", "d_model"),
}
QUICK = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=120)


Case = tuple[dict[str, Any], Model]
Save = Callable[[Model], Path]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    @cache
    def saved(model: Model) -> Path:
        layers, width = SIZES[model.family]
        kind = ARCHITECTURES[model.family]
        sized = replace(kind, settings={**kind.settings, layers: model.layers, width: model.width})
        return sized.save(tmp_path_factory.mktemp(model.family))

    return saved


def begun(recipe: Mapping[str, Any], model: Path) -> Session:
    """Load and rehearse a recipe; one that is refused in words does not count, and after this none may be."""
    try:
        return begin(recipe, model)
    except InputError as error:
        event(f"refused: {str(error)[:100]}")
        reject()


def record(folder: Path) -> Any:
    """Give what a run wrote, but for what a clock or the system measured."""
    lines = [line for file in sorted(folder.rglob("*.jsonl")) for line in file.read_text().splitlines()]
    lines += [file.read_text() for file in sorted(folder.rglob("result.json"))]
    return [{key: value for key, value in json.loads(line).items() if key not in MEASURED} for line in lines]


def assert_resumes(recipe: Mapping[str, Any], model: Path, alone: Witness, folder: Path, stop: int) -> None:
    """Stopped at an update and gone on with, a run ends in the same bytes."""
    assert carry_out(begin(recipe, model), folder / "stopped", stop).updates in (0, stop)
    last = carry_out(begin(recipe, model), folder / "stopped")
    assert_same(last.weights(), alone.weights())
    assert weights(folder / "stopped") == weights(folder / "alone")
    assert record(folder / "stopped") == record(folder / "alone")


def assert_reloads(session: Session, folder: Path) -> None:
    """What is saved gives the same outputs in plain transformers and peft."""
    examples = session.examples["validation"]
    batch = session.task.collate(examples, session.tokenizer)
    expected = raw_outputs(session.state.model, batch, session.machine.exact())
    names = [attachment.name for attachment in session.state.attachments]
    places = Places(session.source, folder / "model", folder / "adapter", folder / "base")
    saved = save_tuned(session.state, session.tokenizer, places, lambda library: "")
    written = {name: str(folder / name) for name, there in saved.items() if there}
    for name in written.keys() - {"base"}:
        model = load_folder(
            name, written, session.task.auto_class.__name__, names, session.source, dict(session.task.config)
        ).eval()
        with torch.inference_mode():
            outputs = model(**batch.inputs).logits.numpy()
        assert difference(outputs, expected) < 1e-4, name


def obeys(case: Case, save: Save, stop: int) -> None:
    recipe, model = case[0], save(case[1])
    session = begun(recipe, model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        alone = carry_out(session, folder / "alone")
        event(f"stages: {len(alone.results)}")
        assert_resumes(recipe, model, alone, folder, 1 + stop % max(alone.updates, 1))
        assert_reloads(session, folder)


def plain(stages: list[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    """Put every stage under SGD, whose updates are as near as its gradients are, and without dropout.

    AdamW would make whole steps of gradients that are zero but for rounding.
    """
    more = {"optimizer": "sgd"} | ({} if family == "llama" else {"dropout": 0})
    return [
        {"repeat": {**stage["repeat"], "stages": plain(stage["repeat"]["stages"], family)}}
        if "repeat" in stage
        else stage | (more if "train" in stage else {})
        for stage in stages
    ]


def splits(case: Case, save: Save, micro_batch: int) -> None:
    """Whether a batch is passed at once or in parts changes nothing beyond rounding."""
    if "snr" in str(case[0]):  # over a variance that may be rounding alone: which of two is first may differ
        reject()
    recipe, model = case[0], save(case[1])
    whole = {**recipe, "precision": "float32", "stages": plain(recipe["stages"], case[1].family)}
    session = begun(whole, model)
    with tempfile.TemporaryDirectory() as scratch:
        one = carry_out(session, Path(scratch) / "one")
        other = carry_out(begin({**whole, "micro_batch": micro_batch}, model), Path(scratch) / "other")
        assert one.results.keys() == other.results.keys()
        for name, found in other.weights().items():
            assert np.allclose(found, one.weights()[name], rtol=1e-3, atol=1e-5), name


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """Give every place in a recipe that holds no other, as its holder and its key."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [place for key, inner in items for place in leaves(inner) or [(value, key)]]


numbers = st.integers(-1, 300) | st.floats(allow_nan=False) | st.sampled_from([1e-30, 1e30, 0.5, "50%"])
words = st.sampled_from(
    ["all", "adapter", "layers[-9:]", "head", "pretrained", "s0", "lora", "loss", "auto", "1 epoch"]
)
selections = st.builds("{} {} {}".format, words, st.sampled_from("|&-"), st.sampled_from(CHOSEN))
changes = st.lists(st.tuples(st.integers(0, 99), numbers | words | selections | st.none()), min_size=1, max_size=3)


def is_begun_or_refused(case: Case, save: Save, changed: list[tuple[int, Any]]) -> None:
    """Whatever stands in a recipe, it is refused in words or can be carried out as far as is known beforehand."""
    recipe = copy.deepcopy(case[0])
    for number, value in changed:
        places = leaves(recipe["stages"])
        holder, key = places[number % len(places)]
        holder[key] = value
    with suppress(InputError):
        recipe_from({"model": "none", **recipe})  # most are refused before a model is needed
        begin(recipe, save(case[1]))


moments, sizes = st.integers(0, 20), st.integers(1, 7)


@given(cases(most=2), moments)
@QUICK
def test_truths(save: Save, case: Case, stop: int) -> None:
    obeys(case, save, stop)


@pytest.mark.slow
@given(cases(), moments)
@LONG
def test_truths_at_length(save: Save, case: Case, stop: int) -> None:
    obeys(case, save, stop)


@given(cases(), changes)
@settings(QUICK, max_examples=30)
def test_refusals(save: Save, case: Case, changed: list[tuple[int, Any]]) -> None:
    is_begun_or_refused(case, save, changed)


@pytest.mark.slow
@given(cases(), changes)
@settings(LONG, max_examples=1500)
def test_refusals_at_length(save: Save, case: Case, changed: list[tuple[int, Any]]) -> None:
    is_begun_or_refused(case, save, changed)


@given(cases(most=2, chance=False), sizes)
@QUICK
def test_micro_batches(save: Save, case: Case, micro_batch: int) -> None:
    splits(case, save, micro_batch)


@pytest.mark.slow
@given(cases(chance=False), sizes)
@LONG
def test_micro_batches_at_length(save: Save, case: Case, micro_batch: int) -> None:
    splits(case, save, micro_batch)
