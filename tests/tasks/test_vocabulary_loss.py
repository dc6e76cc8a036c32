"""The loss over a vocabulary: that of torch, with its gradients, while its logits never stand in memory whole."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from alloytune.tasks import vocabulary_loss
from alloytune.tasks.target_logits import target_logits, target_loss
from alloytune.tasks.vocabulary_loss import summed_cross_entropy

WORDS, TOKENS, WIDTH = 50, 13, 8
TINY = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that anything gives."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple) else (found,):
            self.numbers = max(self.numbers, one.numel() if isinstance(one, Tensor) else 0)
        return found


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_loss, "LOGITS_AT_ONCE", 4 * WORDS)


def case(*, bias: bool = False) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    return torch.randn(TOKENS, WIDTH, requires_grad=True), nn.Linear(WIDTH, WORDS, bias), torch.arange(TOKENS) * 3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradients_are_those_of_torch(bias: bool, smoothing: float) -> None:
    hidden, head, targets = case(bias=bias)
    learned = [hidden, *head.parameters()]
    expected = cross_entropy(head(hidden), targets, reduction="sum", label_smoothing=smoothing)
    found = summed_cross_entropy(hidden, head, targets, smoothing)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected / 7, learned)
    torch.testing.assert_close(torch.autograd.grad(found / 7, learned), wanted)


def test_in_bfloat16_it_rounds_as_torch_does() -> None:
    hidden, head, targets = case()
    with torch.autocast("cpu", torch.bfloat16):
        expected = cross_entropy(head(hidden).float(), targets, reduction="sum")
        found = summed_cross_entropy(hidden, head, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    learned = [hidden, head.weight]
    for one, other in zip(torch.autograd.grad(found, learned), torch.autograd.grad(expected, learned), strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).abs().max()) <= float(other.abs().max()) * 2**-6


def test_a_head_that_stands_still_gets_no_gradient() -> None:
    hidden, head, targets = case()
    head.requires_grad_(False)
    summed_cross_entropy(hidden, head, targets).backward()
    assert head.weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not summed_cross_entropy(hidden, head, targets).requires_grad


@pytest.mark.parametrize("is_capped", [False, True])
def test_a_model_that_caps_its_logits_keeps_doing_so(is_capped: bool) -> None:
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True))
    model: Any = Gemma2ForCausalLM(Gemma2Config(**TINY, final_logit_softcapping=0.1)) if is_capped else plain
    ids = torch.arange(1, 25).view(2, 12)
    chosen = torch.rand(2, 12) < 0.8
    targets = torch.arange(int(chosen.sum()))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = cross_entropy(target_logits(model, inputs, chosen), targets, reduction="sum")
    target_loss(model, inputs, chosen, targets)  # finds out what the model does
    with Largest() as largest:
        found = target_loss(model, inputs, chosen, targets)
    torch.testing.assert_close(found, expected)
    assert (largest.numbers < len(targets) * WORDS) is not is_capped
    for one, other in zip(
        torch.autograd.grad(found, list(model.parameters())),
        torch.autograd.grad(expected, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
