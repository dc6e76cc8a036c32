"""Adapters come and go; weights go back bit by bit."""

from pathlib import Path

import pytest
import torch

import tiny
from alloytune.errors import InputError
from alloytune.models.adapters import Attachment, trained_plainly
from alloytune.models.load import load_tokenizer
from alloytune.models.methods import BottleneckSettings, LoraSettings, Method
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, named_weights
from alloytune.selection import resolve
from tiny import TASK

LORA = LoraSettings(rank=2, alpha=4, dropout=0.0)
BOTTLENECK = BottleneckSettings(reduction=4, activation="relu", placement="sequential", dropout=0.0)


def attach(state: ModelState, settings: Method, on: str = "attention | mlp") -> None:
    state.attach(Attachment("own", settings, resolve(on, state.roles(), "on"), 1), "attach")


@torch.inference_mode()
def logits(state: ModelState, folder: Path) -> torch.Tensor:
    tokenizer = load_tokenizer(str(folder))
    examples = TASK.encode(tiny.make_table(16), tokenizer, 32).examples
    return TASK.outputs(state.model.eval(), TASK.collate(examples, tokenizer))


def shake(state: ModelState, names: frozenset[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in named_weights(state.model).items():
            if name in names:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("settings", [LORA, BOTTLENECK], ids=["lora", "bottleneck"])
def test_attaching_changes_no_output_and_taking_off_no_bit(state: ModelState, bert: Path, settings: Method) -> None:
    before, weights = logits(state, bert), copy_weights(state.model, named_weights(state.model))
    attach(state, settings)
    assert torch.equal(logits(state, bert), before)
    assert state.adapter_names
    shake(state, state.adapter_names)
    assert not torch.allclose(logits(state, bert), before)
    state.take_off()
    assert torch.equal(logits(state, bert), before)
    after = copy_weights(state.model, named_weights(state.model))
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_lora_in_fewer_passes_gives_the_same(state: ModelState) -> None:
    attach(state, LORA)
    shake(state, state.adapter_names)
    moving = [weight for name, weight in named_weights(state.model).items() if name in state.adapter_names]
    for weight in moving:
        weight.requires_grad_(True)

    def found() -> list[torch.Tensor]:
        given = state.model(input_ids=torch.arange(12).view(2, 6)).logits
        return [given, *torch.autograd.grad(given.square().sum(), moving)]

    expected = found()
    with trained_plainly(state.model):
        inside = found()
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(inside, expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(found(), expected, strict=True))


def test_merging_changes_outputs_by_rounding_only(state: ModelState, bert: Path) -> None:
    attach(state, LORA)
    shake(state, state.adapter_names)
    before = logits(state, bert)
    targets = state.at_stake(["own"])
    state.merge()
    assert not state.adapter_names
    assert torch.allclose(logits(state, bert), before, atol=1e-5)
    assert state.touched >= {name for name in targets if "lora" not in name}


@pytest.mark.parametrize("settings", [LORA, BOTTLENECK], ids=["lora", "bottleneck"])
def test_a_snapshot_brings_back_what_was_attached(state: ModelState, bert: Path, settings: Method) -> None:
    attach(state, settings)
    shake(state, state.adapter_names | state.head)
    before = logits(state, bert)
    snapshot = state.snapshot(state.at_stake(["own"]) | state.head)
    if settings.mergeable:
        state.merge()
    else:
        state.take_off()
    shake(state, state.head)
    state.restore(snapshot)
    assert torch.equal(logits(state, bert), before)
    assert state.touched == snapshot.touched


def test_rolling_back_an_attachment_removes_it(state: ModelState, bert: Path) -> None:
    snapshot = state.snapshot(frozenset())
    before = logits(state, bert)
    attach(state, LORA)
    shake(state, state.adapter_names)
    state.restore(snapshot)
    assert torch.equal(logits(state, bert), before)
    assert not state.adapter_names


def test_an_adapter_needs_a_linear_layer(state: ModelState) -> None:
    with pytest.raises(InputError, match="no linear layer"):
        attach(state, LORA, on="norm")
    with pytest.raises(InputError, match="no output projection"):
        attach(state, BOTTLENECK, on="embeddings")
    with pytest.raises(InputError, match="outside the head"):
        attach(state, LORA, on="head")


def test_an_unknown_activation_is_named(state: ModelState) -> None:
    with pytest.raises(InputError, match="swoosh"):
        attach(state, BottleneckSettings(4, "swoosh", "sequential", 0.0))
