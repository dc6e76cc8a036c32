"""Dropout, mixout, label smoothing and R-Drop."""

import math
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from alloytune.models.adapters import Attachment
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.methods import LoraSettings
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, named_weights
from alloytune.selection import resolve
from alloytune.tasks.classification import Classification
from alloytune.tasks.task import Batch
from alloytune.train.regularize import can_drop, dropout_at, drops, make_loss, with_mixout
from tiny import TASK


def batch_of(folder: Path, rows: int) -> Batch:
    tokenizer = load_tokenizer(str(folder))
    return TASK.collate(TASK.encode(tiny.make_table(rows), tokenizer, 32).examples, tokenizer)


def shares(model: nn.Module) -> list[tuple[str, float]]:
    return [(name, module.p) for name, module in model.named_modules() if isinstance(module, nn.Dropout)]


def test_dropout_is_set_and_put_back_and_leaves_the_adapters_own(state: ModelState) -> None:
    names = resolve("attention", state.roles(), "on")
    state.attach(Attachment("lora", LoraSettings(rank=2, alpha=4, dropout=0.3), names, 1), "attach")
    before = shares(state.model)
    with dropout_at(state.model, 0.25):
        assert {share for name, share in shares(state.model) if "lora" not in name} == {0.25}
        assert {share for name, share in shares(state.model) if "lora" in name} == {0.3}
    assert shares(state.model) == before
    with dropout_at(state.model, None):
        assert shares(state.model) == before


def test_dropout_reaches_models_that_hold_a_number_instead_of_a_module(llama: Path) -> None:
    model, _ = load_model(TASK.auto_class, str(llama), load_tokenizer(str(llama)), 0, **TASK.config)
    assert can_drop(model)
    assert not drops(model)
    model.train()
    batch = batch_of(llama, 8)
    with torch.no_grad(), dropout_at(model, 0.5):
        assert drops(model)
        assert not torch.equal(TASK.outputs(model, batch), TASK.outputs(model, batch))
    with torch.no_grad():
        assert torch.equal(TASK.outputs(model, batch), TASK.outputs(model, batch))
    assert not can_drop(nn.Linear(2, 2))


def test_label_smoothing_spreads_a_share_over_all_labels() -> None:
    """Logits (0, ln 3) give probabilities 1/4 and 3/4; of target 1 smoothed by 0.2, 0.1 lies on label 0."""
    outputs, batch = torch.tensor([[0.0, math.log(3)]]), Batch({}, torch.tensor([1]), ("1",), 1, 1)
    assert float(TASK.loss(outputs, batch)) == pytest.approx(-math.log(0.75))
    expected = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    assert float(TASK.loss(outputs, batch, 0.2)) == pytest.approx(expected)


class TwoPasses(Classification):
    """Gives one of two outputs in turn."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return next(model.turns)  # type: ignore[no-any-return, operator, arg-type]


def test_r_drop_by_hand() -> None:
    """Passes of (1/2, 1/2) and (1/4, 3/4): KL is ln(4/3)/2 one way and 3/4 ln 3 - ln 2 the other."""
    model: Any = nn.Module()
    model.turns = cycle([torch.zeros(3, 2), torch.tensor([[0.0, math.log(3)]]).expand(3, 2)])
    batch = Batch({}, torch.tensor([1, 1, 1]), ("1", "2", "3"), 3, 3)
    loss = make_loss(TwoPasses(TASK.labels), r_drop=2.0)(model, batch)
    cross = (-math.log(0.5) - math.log(0.75)) / 2
    divergence = (0.5 * math.log(4 / 3) + 0.75 * math.log(3) - math.log(2)) / 2
    assert float(loss) == pytest.approx(3 * (cross + 2.0 * divergence))


@pytest.mark.parametrize("r_drop", [0.0, 1.0])
def test_regularised_loss_is_a_sum_over_targets(tmp_path: Path, r_drop: float) -> None:
    folder = tiny.save_bert(tmp_path / "bert", dropout=0.0)
    model, _ = load_model(TASK.auto_class, str(folder), load_tokenizer(str(folder)), 0, **TASK.config)
    loss = partial(make_loss(TASK, label_smoothing=0.1, r_drop=r_drop), model)
    tokenizer = load_tokenizer(str(folder))
    examples = TASK.encode(tiny.make_table(8), tokenizer, 32).examples
    parts = [TASK.collate(examples[first : first + 3], tokenizer) for first in range(0, len(examples), 3)]
    whole = float(loss(TASK.collate(examples, tokenizer)).detach())
    assert sum(float(loss(part).detach()) for part in parts) == pytest.approx(whole, rel=1e-5)


def test_mixout_mixes_a_share_keeps_the_mean_and_leaves_the_weights_alone(state: ModelState, bert: Path) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    weight = named_weights(state.model)[name]
    anchor = weight.detach() + 1.0
    seen: list[Tensor] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(model.bert.encoder.layer[1].output.dense.weight)  # type: ignore[union-attr, index, arg-type]
        return TASK.summed_loss(model, batch)

    before = copy_weights(state.model, named_weights(state.model))
    mixed_loss = with_mixout(loss, {name: anchor}, 0.75)
    torch.manual_seed(0)
    for _ in range(60):
        value = mixed_loss(state.model, batch_of(bert, 2))
    value.backward()
    mixed = torch.stack(seen).detach()
    at_anchor = (mixed - anchor).abs() < 1e-6
    assert float(at_anchor.float().mean()) == pytest.approx(0.75, abs=0.01)
    assert torch.allclose(mixed[~at_anchor], (weight.detach() - 3.0).expand_as(mixed)[~at_anchor], atol=1e-5)
    assert float((mixed.mean(0) - weight.detach()).abs().mean()) < 0.3
    after = copy_weights(state.model, named_weights(state.model))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert weight.grad is not None
    assert torch.equal(weight.grad == 0, at_anchor[-1])
    assert named_weights(state.model)["classifier.weight"].grad is not None
