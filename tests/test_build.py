"""From recipe to what moves."""

from pathlib import Path
from types import MappingProxyType

import pytest

from alloytune.build import Session, build_moving
from alloytune.errors import InputError
from alloytune.machine import find_machine
from alloytune.models.adapters import LoraSettings
from alloytune.models.load import load_tokenizer
from alloytune.models.state import Attachment, ModelState
from alloytune.recipe.read import recipe_from
from alloytune.selection import resolve
from conftest import TASK


def session(state: ModelState, bert: Path, *, attached: bool = False, **stage: object) -> Session:
    """Give a session whose one stage is to be built; its adapter, if any, is attached already."""
    if attached:
        names = resolve("attention", state.roles(), "on")
        state.attach(Attachment(LoraSettings(2, 4, 0.0), names, 0), "attach")
        stage["attach"] = {"lora": {"on": "attention"}}
    recipe = recipe_from({"stages": [{"name": "only", **stage}]})
    tokenizer = load_tokenizer(str(bert))
    empty = MappingProxyType({})
    return Session(recipe, str(bert), TASK, tokenizer, state, find_machine("float32"), empty, empty, None)


def rates(session: Session) -> dict[str, float]:
    return {name: group.rate for group in build_moving(session, 0).groups for name in group.names}


def test_rates_by_selection_come_first(state: ModelState, bert: Path) -> None:
    found = rates(session(state, bert, train="all", rate=1e-4, rates={"head": 1e-2, "norm | head": 1e-3}))
    assert found["classifier.weight"] == 1e-2
    assert found["bert.embeddings.LayerNorm.weight"] == 1e-3
    assert found["bert.embeddings.word_embeddings.weight"] == 1e-4


@pytest.mark.parametrize(
    ("train", "attached", "body", "adapter", "head"),
    [
        ("all", False, 3e-4, None, 3e-4),
        ("layers[-1:] | head", False, 3e-4, None, 3e-4),  # half of the layers of this model
        ("bias | head", False, 1e-3, None, 1e-3),
        ("head", False, None, None, 2e-2),
        ("adapter | head", True, None, 3e-3, 3e-3),
        ("all | adapter", True, 3e-4, 3e-3, 3e-4),
    ],
)
def test_auto_rates(
    state: ModelState, bert: Path, train: str, attached: bool, body: float, adapter: float, head: float
) -> None:
    found = rates(session(state, bert, attached=attached, train=train))
    of_adapter = {rate for name, rate in found.items() if "lora" in name}
    assert of_adapter == ({adapter} if adapter else set())
    assert found["classifier.weight"] == head
    assert {rate for name, rate in found.items() if "encoder" in name and "lora" not in name} == (
        {body} if body else set()
    )


def test_weights_that_have_moved_get_less(state: ModelState, bert: Path) -> None:
    state.touched |= resolve("layers", state.roles(), "train")
    assert rates(session(state, bert, train="all"))["classifier.weight"] == pytest.approx(0.3 * 3e-4)


def test_biases_and_norms_do_not_decay(state: ModelState, bert: Path) -> None:
    moving = build_moving(session(state, bert, train="all", weight_decay=0.1), 0)
    undecayed = {name for group in moving.groups if group.weight_decay == 0 for name in group.names}
    assert undecayed == {name for name in moving.names if name.endswith("bias") or "LayerNorm" in name}


def test_a_rate_for_what_does_not_move_is_refused(state: ModelState, bert: Path) -> None:
    with pytest.raises(InputError, match=r"stages\[0\].rates: nothing of 'embeddings' moves"):
        build_moving(session(state, bert, train="head", rates={"embeddings": 1e-3}), 0)
