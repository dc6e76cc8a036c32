"""Layers without padding give the same outputs and gradients, in every architecture that bears them."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from alloytune.models import unpadded as unpadding
from alloytune.models.replay import layer_modules
from alloytune.models.roles import find_roles
from alloytune.models.unpadded import FEW, Layout, unpadded
from alloytune.train.regularize import dropout_at
from architectures import ARCHITECTURES

TWO_SIDES = {"t5", "bart"}
OWN_ATTENTION = {"deberta-v2", "xlnet", "mpnet", "gemma2"}
PADDED = TWO_SIDES | OWN_ATTENTION
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]])
FILLED = 16  # places for its 15 tokens


@pytest.fixture(autouse=True)
def _fill_up_to_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there is something to gain from three short texts."""
    monkeypatch.setattr(unpadding, "MULTIPLE", FEW)


def make_model(name: str) -> Any:
    wanted = ARCHITECTURES[name]
    config = getattr(transformers, wanted.model).config_class(**wanted.settings)
    config.pad_token_id = config.pad_token_id or 0
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_config(config).double().train()


def make_inputs(config: Any) -> dict[str, Tensor]:
    ids = torch.arange(4, 4 + MASK.numel()).view_as(MASK)
    if config.is_encoder_decoder:
        ids[:, 0] = config.eos_token_id  # BART reads at the last of these
    return {"input_ids": ids.masked_fill(MASK == 0, config.pad_token_id), "attention_mask": MASK}


def hidden(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def learn(model: Any, context: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    with dropout_at(model, 0.0), context:
        logits = model(**make_inputs(model.config)).logits
        logits.square().sum().backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return logits.detach(), grads


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_and_gradients_are_the_same(name: str) -> None:
    model = make_model(name)
    roles = find_roles(model)
    expected, expected_grads = learn(model, nullcontext())
    rows_in_layers = set()
    for layer in layer_modules(model, roles)[:1]:
        layer.register_forward_hook(lambda _, args, output: rows_in_layers.add(hidden(output).shape[:2]))
    found, grads = learn(model, unpadded(model, roles))
    assert torch.allclose(found, expected, atol=1e-9)
    assert grads.keys() == expected_grads.keys()
    assert all(torch.allclose(grads[each], expected_grads[each], atol=1e-9) for each in grads)
    assert ((1, FILLED) in rows_in_layers) is (name not in PADDED)


def test_as_many_tokens_as_a_row_has_places() -> None:
    """One long text and a very short one: without padding they fill one row, which is not one that stands for all."""
    model = make_model("bert")
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]])
    inputs = {"input_ids": torch.arange(4, 20).view_as(mask), "attention_mask": mask}
    with dropout_at(model, 0.0):
        expected = model(**inputs).logits
        with unpadded(model, find_roles(model)):
            assert torch.allclose(model(**inputs).logits, expected, atol=1e-9)


def test_nothing_changes_outside_training_and_afterwards() -> None:
    model = make_model("bert").eval()
    inputs = make_inputs(model.config)
    expected = model(**inputs).logits
    with unpadded(model, find_roles(model)):
        assert torch.equal(model(**inputs).logits, expected)
    model.train()
    with dropout_at(model, 0.0):
        assert torch.equal(model(**inputs).logits, expected)


def test_padding_goes_and_comes_back_as_zeros() -> None:
    layout = Layout.of(MASK, 4)
    rows = torch.arange(MASK.numel() * 2, dtype=torch.float64).view(*MASK.shape, 2).requires_grad_()
    stripped = layout.strip(rows)
    assert torch.equal(stripped[0, :15], rows[MASK.bool()])
    assert stripped[0, 15:].tolist() == [[0, 0]]
    padded = layout.pad(stripped)
    assert torch.equal(padded, rows * MASK[..., None])
    assert torch.autograd.gradcheck(lambda each: layout.pad(layout.strip(each).square()), rows)


def test_heads_go_and_come_back_one_by_one() -> None:
    layout = Layout.of(MASK, 4)
    heads = torch.arange(3 * 2 * 7 * 5, dtype=torch.float64).view(3, 2, 7, 5).requires_grad_()
    stripped, padded = layout.strip_heads(heads), layout.pad_heads(layout.strip_heads(heads))
    for head in range(2):
        assert torch.equal(stripped[:, head], layout.strip(heads[:, head]))
        assert torch.equal(padded[:, head], layout.pad(stripped[:, head]))
    assert torch.autograd.gradcheck(lambda each: layout.pad_heads(layout.strip_heads(each).square()), heads)


def test_layers_that_are_given_something_else_keep_their_padding() -> None:
    """A layer that looks at its neighbours, beside attention, is found out and left as it is."""
    model = make_model("bert")
    mixing = nn.Conv1d(16, 16, 3, padding=1).double()
    output = model.bert.encoder.layer[0].output
    plain = output.forward
    output.forward = lambda hidden, given: plain(hidden, mixing(given.mT).mT)
    expected, _ = learn(model, nullcontext())
    found, _ = learn(model, unpadded(model, find_roles(model)))
    assert torch.equal(found, expected)


def test_a_call_within_a_call_does_not_disturb_it() -> None:
    """An evaluation in the middle of a training pass, as of layers that stand still."""
    model = make_model("bert")
    expected, _ = learn(model, nullcontext())
    seen = []

    def evaluate(*_: Any) -> None:
        if model.training:
            model.eval()
            model(**make_inputs(model.config))
            model.train()

    model.bert.embeddings.register_forward_pre_hook(evaluate)
    model.bert.encoder.layer[0].register_forward_hook(lambda _, args, output: seen.append(hidden(output).shape[:2]))
    found, _ = learn(model, unpadded(model, find_roles(model)))
    assert torch.allclose(found, expected, atol=1e-9)
    assert seen[-2:] == [MASK.shape, (1, FILLED)]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_head_that_reads_the_first_place_finds_it_behind_padding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """BERT's reads padding there, which has to stay as it is; a decoder's reads the last token."""
    monkeypatch.setattr(f"{__name__}.MASK", MASK.flip(1))
    model = make_model(name)
    roles = find_roles(model)
    places: list[Any] = []
    layer_modules(model, roles)[0].register_forward_hook(
        lambda _, args, output: places.append(hidden(output).shape[:2])
    )
    expected, expected_grads = learn(model, nullcontext())
    with unpadded(model, roles):
        places.clear()
        found, grads = learn(model, nullcontext())
    assert torch.allclose(found, expected, atol=1e-9)
    assert all(torch.allclose(grads[weight], grad, atol=1e-9) for weight, grad in expected_grads.items())
    assert places == ([MASK.shape] if name == "bert" else [(1, FILLED)])


@pytest.mark.parametrize("family", ["Canine", "IBert", "Longformer"])
def test_models_that_count_or_pad_by_themselves_are_left_as_they_are(family: str) -> None:
    config = getattr(transformers, f"{family}Config")(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=40,
        **({"attention_window": 8, "pad_token_id": 0} if family == "Longformer" else {}),
    )
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).double().train()
    ids, mask = torch.arange(8, 24).view(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, 3:] = 0
    with dropout_at(model, 0.0), unpadded(model, find_roles(model)):
        assert model(input_ids=ids, attention_mask=mask).logits.shape == (2, 2)
