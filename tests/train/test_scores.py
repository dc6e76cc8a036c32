"""Scores, each against its definition."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from alloytune.errors import NotFiniteError
from alloytune.expression import ELEMENT_SCORES, SCORES
from alloytune.machine import Machine
from alloytune.models.load import load_tokenizer
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, named_weights
from alloytune.train.batches import Updates
from alloytune.train.scores import Facts, Gradient, element_scores, largest, measure_gradients, tensor_score
from tiny import TASK

FLOAT32 = Machine(torch.device("cpu"), torch.float32)


def facts(gradients: Tensor, weight: Tensor, pretrained: Tensor | None = None, rank: int = 1) -> Facts:
    """Give the facts of a weight whose gradient in batch n is `gradients[n]`."""
    norms = gradients.flatten(1).norm(dim=1)
    return Facts(weight, Gradient(gradients.mean(0), gradients.square().mean(0), float(norms.mean())), pretrained, rank)


def test_scores_of_gradients() -> None:
    torch.manual_seed(0)
    gradients, weight = torch.randn(5, 3, 4), torch.randn(3, 4)
    known = facts(gradients, weight)
    norm = sum(float(gradient.norm()) for gradient in gradients) / 5
    assert tensor_score("gradient", known) == pytest.approx(norm)
    assert tensor_score("rgn", known) == pytest.approx(norm / float(weight.norm()))
    assert tensor_score("fisher", known) == pytest.approx(float(gradients.square().mean()))
    snr = gradients.mean(0).square() / gradients.var(0, correction=0)
    assert torch.allclose(element_scores("snr", known), snr, rtol=1e-3)
    assert tensor_score("snr", known) == pytest.approx(float(snr.mean()), rel=1e-3)
    assert torch.allclose(element_scores("fisher", known), gradients.square().mean(0))
    assert torch.allclose(element_scores("gradient", known), gradients.mean(0).abs())


def test_a_gradient_that_never_changes_has_a_finite_ratio_and_none_has_none() -> None:
    known = facts(torch.tensor([[0.1, 0.0]]).repeat(5, 1), torch.ones(2))
    steady, absent = element_scores("snr", known).tolist()
    assert math.isfinite(steady)
    assert steady > 1e5
    assert absent == 0.0


def test_weights_of_zero_have_no_relative_norm() -> None:
    known = facts(torch.ones(2, 3), torch.zeros(3), pretrained=torch.zeros(3))
    assert tensor_score("rgn", known) is None
    assert tensor_score("weight_change", known) is None


def test_weight_change() -> None:
    known = Facts(torch.tensor([3.0, 4.0]), pretrained=torch.tensor([0.0, 5.0]))
    assert tensor_score("weight_change", known) == pytest.approx(math.sqrt(10) / 5)
    assert element_scores("weight_change", known).tolist() == [3.0, 1.0]


def test_spectral_snr_tells_signal_from_noise() -> None:
    """A matrix of noise has next to nothing above the bound; with one strong direction, about as much as below it."""
    torch.manual_seed(0)
    noise = torch.randn(96, 64) / 8
    strong = noise + 30 * torch.outer(torch.randn(96) / 96**0.5, torch.randn(64) / 64**0.5)
    values = torch.linalg.svdvals(strong)
    quarter, three = torch.quantile(values, 0.25), torch.quantile(values, 0.75)
    bound = float((three - quarter) / 1.349) * (1 + math.sqrt(64 / 96))
    above = float(values[values > bound].sum() / values[values <= bound].sum() / values[0])
    assert tensor_score("spectral_snr", Facts(strong)) == pytest.approx(above, rel=1e-4)
    assert tensor_score("spectral_snr", Facts(torch.eye(4))) == pytest.approx(4.0)  # nothing is below the bound
    assert tensor_score("spectral_snr", Facts(torch.zeros(4, 3))) is None


def test_lowrank_misfit_is_what_a_rank_cannot_hold() -> None:
    gradient = torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None]
    assert tensor_score("lowrank_misfit", facts(gradient, torch.ones(3, 3), rank=1)) == pytest.approx(5 / 14)
    assert tensor_score("lowrank_misfit", facts(gradient, torch.ones(3, 3), rank=3)) == pytest.approx(0.0, abs=1e-6)
    assert tensor_score("lowrank_misfit", facts(0 * gradient, torch.ones(3, 3))) == 0.0


def test_every_word_has_its_score() -> None:
    known = facts(torch.randn(3, 4, 4), torch.randn(4, 4), torch.randn(4, 4))
    assert all(isinstance(tensor_score(score, known), float) for score in SCORES)
    assert all(element_scores(score, known).shape == (4, 4) for score in ELEMENT_SCORES)


@given(st.lists(st.integers(-3, 3), min_size=3, max_size=12), st.data())
def test_exactly_as_many_of_the_largest_as_asked_for(numbers: list[int], data: st.DataObject) -> None:
    amount = data.draw(st.integers(1, len(numbers)) | st.floats(0.01, 0.99))
    cut = data.draw(st.integers(1, len(numbers) - 1))
    values = torch.tensor(numbers, dtype=torch.float32)
    masks = largest({"a": values[:cut], "b": values[cut:]}, amount)
    mask = torch.cat([masks["a"], masks["b"]])
    count = amount if isinstance(amount, int) else max(1, round(amount * len(numbers)))
    assert int(mask.sum()) == count
    best = sorted(range(len(numbers)), key=lambda place: (-numbers[place], place))[:count]
    assert mask.nonzero().flatten().tolist() == sorted(best)


def updates(bert: Path, micro_batch: int = 8) -> Updates:
    tokenizer = load_tokenizer(str(bert))
    examples = TASK.encode(tiny.make_table(40), tokenizer, 32).examples
    return Updates(examples, 8, micro_batch, 0, partial(TASK.collate, tokenizer=tokenizer))


def test_gradients_are_measured_without_moving_a_weight(state: ModelState, bert: Path) -> None:
    names = frozenset({"classifier.weight", "bert.encoder.layer.0.output.dense.weight"})
    before = copy_weights(state.model, named_weights(state.model))
    found = measure_gradients(state.model, names, updates(bert).after(0), TASK.summed_loss, FLOAT32, 2)
    assert found.keys() == names
    gradients = []
    for (batch,), _ in zip(updates(bert).after(0), range(2), strict=False):
        loss = TASK.summed_loss(state.model.eval(), batch) / batch.num_targets
        gradients.append(torch.autograd.grad(loss, named_weights(state.model)["classifier.weight"])[0])
    measured = found["classifier.weight"]
    assert torch.allclose(measured.mean, torch.stack(gradients).mean(0), rtol=1e-4, atol=1e-7)
    assert torch.allclose(measured.mean_square, torch.stack(gradients).square().mean(0), rtol=1e-4, atol=1e-7)
    assert measured.mean_norm == pytest.approx(float(torch.stack([g.norm() for g in gradients]).mean()), rel=1e-4)
    after = named_weights(state.model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(weight.grad is None for weight in after.values())


def test_micro_batches_change_no_score(state: ModelState, bert: Path) -> None:
    names = frozenset({"classifier.weight"})
    whole, split = (
        measure_gradients(state.model, names, updates(bert, size).after(0), TASK.summed_loss, FLOAT32, 3)
        for size in (8, 3)
    )
    assert torch.allclose(whole["classifier.weight"].mean, split["classifier.weight"].mean, rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_is_named(state: ModelState, bert: Path) -> None:
    with torch.no_grad():
        named_weights(state.model)["classifier.bias"][0] = float("nan")
    names = frozenset({"classifier.weight"})
    with pytest.raises(NotFiniteError, match="the loss of batch 1 is nan"):
        measure_gradients(state.model, names, updates(bert).after(0), TASK.summed_loss, FLOAT32, 2)
