"""Packed examples are what they are apart, and logits are computed where they are asked for alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from alloytune.tasks.packing import can_pack, pack
from alloytune.tasks.target_logits import target_logits

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
GEMMA = SIZES | {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
LENGTHS = (7, 3, 4, 2, 6, 1)

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    # its softmax is in float32, in which float64's mask is infinite: a padded token outside the window would be NaN
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA | {"sliding_window": 8}, final_logit_softcapping=0.5)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
}


def examples() -> tuple[Tensor, Tensor]:
    """Make ids of several lengths, padded on the right with 0, and their mask."""
    torch.manual_seed(2)
    ids = [torch.randint(1, 50, (length,)) for length in LENGTHS]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return padded, (torch.arange(padded.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()


@pytest.mark.parametrize("name", MODELS)
def test_packed_and_apart_agree_in_logits_and_gradients(name: str) -> None:
    torch.manual_seed(1)
    model = MODELS[name]().double().eval()
    ids, mask = examples()
    chosen = mask.bool().clone()
    chosen[:, 0] = False
    packed = pack(mask)
    assert (packed.num_rows, packed.length) == (4, 7), "7, 6 + 1, 4 + 3 and 2 tokens"
    assert can_pack(model)

    results = []
    for is_packed in (False, True):
        model.zero_grad()
        if is_packed:
            found = target_logits(model, packed.inputs(ids), packed.rows_of(chosen))[packed.order(chosen)]
        else:
            found = model(input_ids=ids, attention_mask=mask).logits[chosen].float()
        cross_entropy(found, ids[chosen], reduction="sum").backward()
        results.append((found.detach(), {key: weight.grad.clone() for key, weight in model.named_parameters()}))
    (apart, gradients), (together, others) = results
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-7)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-6, atol=1e-8)


def test_models_that_would_mix_examples_are_found_out() -> None:
    torch.manual_seed(1)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    assert not any(can_pack(model) for model in (mamba, bloom, t5))


def test_no_row_outgrows_the_longest_example() -> None:
    lengths = torch.tensor([5, 5, 5, 1])
    packed = pack((torch.arange(5) < lengths[:, None]).long())
    assert (packed.num_rows, packed.length) == (4, 5)


def test_the_head_sees_chosen_positions_alone() -> None:
    torch.manual_seed(1)
    model = MODELS["gemma2"]().eval()
    ids, mask = examples()
    chosen = torch.zeros_like(mask).bool()
    chosen[0, 2] = chosen[4, 5] = True
    seen = []
    model.lm_head.register_forward_hook(lambda _, given, made: seen.append(made.shape))
    found = target_logits(model, {"input_ids": ids, "attention_mask": mask}, chosen)
    assert seen == [(1, 2, 50)]
    torch.testing.assert_close(found, model(input_ids=ids, attention_mask=mask).logits[chosen])
