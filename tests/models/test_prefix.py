"""Prefix tuning inside attention, on every family whose attention can be reached."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tiny
from alloytune.errors import InputError
from alloytune.models.adapters import Attachment
from alloytune.models.load import load_tokenizer
from alloytune.models.methods import LoraSettings, PrefixSettings
from alloytune.models.prefix import PrefixConfig, PrefixLayer, PrefixModel, attend
from alloytune.selection import resolve
from architectures import ARCHITECTURES
from models.test_methods import attach, load, outputs, shake
from tiny import TASK

OUT_OF_REACH = {
    "deberta-v2": "computes attention by itself",
    "mpnet": "computes attention by itself",
    "xlnet": "holds no key projection",  # its keys are made by no layer
    "gemma2": "is not set to 'sdpa' attention",  # which has no caps on its scores
}
AT_ONCE = ("bert", "gpt2", "llama", "t5", "deberta-v2")
FAMILIES = [pytest.param(name, marks=[] if name in AT_ONCE else pytest.mark.slow) for name in ARCHITECTURES]
LENGTH = 3


class Attention(nn.Module):
    """Two heads of four, one of keys, whose key projection carries prefixes."""

    def __init__(self, *, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.num_key_value_groups = 2
        self.k_proj = PrefixLayer(nn.Linear(8, 4), "own", PrefixConfig(length=LENGTH), width=4)


def by_hand(layer: PrefixLayer, query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """softmax(q [P_k; K]' / sqrt(4)) [P_v; V], where a position sees every prefix and what is `seen` of the text."""
    keys = torch.cat([layer.prefix_key["own"].expand(2, 1, LENGTH, 4), key], 2).expand(2, 2, -1, 4)
    values = torch.cat([layer.prefix_value["own"].expand(2, 1, LENGTH, 4), value], 2).expand(2, 2, -1, 4)
    scores = query @ keys.transpose(2, 3) / 2
    scores = scores.masked_fill(~torch.cat([torch.ones_like(seen[..., :LENGTH]), seen], -1), -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2)


@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "additive", "biased"])
def test_the_formula_by_hand(mask: str) -> None:
    torch.manual_seed(0)
    attention = Attention(is_causal=mask == "causal")
    query, key, value = torch.randn(2, 2, 5, 4), torch.randn(2, 1, 5, 4), torch.randn(2, 1, 5, 4)
    seen = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    given: dict[str, Any] = {"attention_mask": None}
    if mask == "causal":
        seen = seen.tril()
    elif mask != "none":
        seen[1, :, :, 3:] = False
        given["attention_mask"] = seen if mask == "boolean" else torch.where(seen, 0.0, -1e9)
    if mask == "biased":
        given["position_bias"] = torch.zeros(1, 2, 5, 5)
    found, _ = attend(attention, query, key, value, **given)
    assert torch.allclose(found, by_hand(attention.k_proj, query, key, value, seen), atol=1e-6)


def test_attention_without_prefixes_is_as_it_was(bert: Path) -> None:
    state = load(bert)
    before = outputs(state.model, bert)
    attach(state, PrefixSettings(LENGTH), on="attention")
    assert not torch.equal(outputs(state.model, bert), before)
    assert torch.equal(outputs(load(bert).model, bert), before)  # another model, beside it
    state.take_off()
    assert torch.equal(outputs(state.model, bert), before)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attend


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, tmp_path: Path) -> None:
    """Prefixes are trained in every attention, padding is not seen, and what cannot be reached is refused."""
    source = ARCHITECTURES[name].save(tmp_path)
    state = load(source)
    attachment = Attachment("own", PrefixSettings(LENGTH), resolve("attention", state.roles(), "on"), 1)
    if name in OUT_OF_REACH:
        with pytest.raises(InputError, match=OUT_OF_REACH[name]):
            state.attach(attachment, "attach", fresh=True)
        return
    state.attach(attachment, "attach", fresh=True)
    shake(state, "adapter")
    tokenizer = load_tokenizer(str(source))
    examples = TASK.encode(tiny.make_table(6), tokenizer, 32).examples
    examples = sorted(examples, key=lambda example: example.num_tokens)
    together = TASK.outputs(state.model, TASK.collate(examples, tokenizer))
    alone = torch.cat([TASK.outputs(state.model, TASK.collate([example], tokenizer)) for example in examples])
    assert torch.allclose(together, alone, atol=1e-4)
    TASK.summed_loss(state.model, TASK.collate(examples, tokenizer)).backward()
    prefixes = {path: weight for path, weight in state.model.named_parameters() if "prefix_" in path}
    assert {weight.shape[0] for weight in prefixes.values()} == {LENGTH}
    reached = [path for path, weight in prefixes.items() if weight.grad is not None and weight.grad.any()]
    assert reached == list(prefixes)
    assert state.adapter_names == state.roles().members["adapter.own"]


def test_words_are_generated_after_prefixes(llama: Path) -> None:
    """With the cache of keys and values and without, the same."""
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    PrefixModel(model, {"own": PrefixConfig(length=LENGTH, target_modules=["k_proj"])}, "own")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(20 if "prefix_" in name else 3)
    text = torch.tensor([[5, 9, 12]])
    told = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    written = [model.generate(text, use_cache=cached, **told) for cached in (True, False)]
    assert torch.equal(*written)


def test_a_selection_without_keys_is_refused(bert: Path) -> None:
    with pytest.raises(InputError, match="holds no key projection"):
        attach(load(bert), PrefixSettings(LENGTH), on="attention.query | mlp")


def test_another_attention_is_refused(bert: Path) -> None:
    state = load(bert)
    state.model.set_attn_implementation("eager")
    with pytest.raises(InputError, match="is not set to 'sdpa' attention"):
        attach(state, PrefixSettings(LENGTH), on="attention")


def test_beside_lora_on_the_same_layer(bert: Path) -> None:
    state = load(bert)
    attach(state, PrefixSettings(LENGTH), "first", "attention")
    start = outputs(state.model, bert)
    attach(state, LoraSettings(2), "second", "attention.key", stack=True)
    assert torch.equal(outputs(state.model, bert), start)
    shake(state, "adapter.first")
    moved = outputs(state.model, bert)
    assert not torch.allclose(moved, start, atol=1e-3)
    state.merge(["second"])
    assert torch.allclose(outputs(state.model, bert), moved, atol=1e-5)


def test_a_gate_multiplies_keys_and_values() -> None:
    layer = PrefixLayer(nn.Linear(8, 4), "own", PrefixConfig(length=LENGTH, gate=True), width=4)
    ((keys, values),) = layer.prefixes()
    assert torch.equal(keys, layer.prefix_key["own"] / 2)
    assert torch.equal(values, layer.prefix_value["own"] / 2)
    with pytest.raises(ValueError, match="length must be at least 1"):
        PrefixConfig(length=0)
    assert SimpleNamespace(**PrefixConfig(target_modules={"b", "a"}).to_dict()).target_modules == ["a", "b"]
