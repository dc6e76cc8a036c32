"""What a model writes does not depend on its neighbours in the batch, and ends at its end token."""

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    RobertaConfig,
    RobertaForCausalLM,
)
from transformers import LlamaForCausalLM as Llama

import tiny
from alloytune.tasks.answering import end_tokens, write_answers
from templates import CHATML, tokenizer_of_bytes

PROMPTS = [[5, 9, 7], [11, 6], [8, 8, 12, 14, 15, 9]]
TOKENS = len(tiny.WORDS)


def make_model(name: str) -> Any:
    """Make a random model whose logits are far enough apart to rank without doubt."""
    torch.manual_seed(3)
    if name == "bart":
        sizes = {
            f"{side}_{key}": n
            for side in ("encoder", "decoder")
            for key, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
        }
        config = BartConfig(
            vocab_size=TOKENS,
            d_model=16,
            max_position_embeddings=32,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
            init_std=0.5,
            **sizes,
        )
        return BartForConditionalGeneration(config)
    if name == "gpt2":
        config = GPT2Config(
            vocab_size=TOKENS,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            bos_token_id=2,
            eos_token_id=3,
            initializer_range=0.5,
        )
        return GPT2LMHeadModel(config)
    if name in ("bert", "roberta"):  # encoders, set up as decoders
        kind, model_class = (BertConfig, BertLMHeadModel) if name == "bert" else (RobertaConfig, RobertaForCausalLM)
        config = kind(
            vocab_size=TOKENS,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=34,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            initializer_range=0.5,
            is_decoder=True,
        )
        return model_class(config)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=32,
        bos_token_id=2,
        eos_token_id=3,
        initializer_range=0.5,
    )
    return Llama(config)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bart", "bert", "roberta"])
def test_answers_in_a_batch_are_those_of_every_prompt_alone(name: str) -> None:
    """A prompt that fills the model's room is cut, and leaves the others as much to write as ever."""
    model, tokenizer = make_model(name), tiny.make_tokenizer()
    prompts = PROMPTS if name == "bart" else [*PROMPTS, [5, 9, 7, 11] * 10]
    together = write_answers(model, prompts, tokenizer, 8)
    assert together == [write_answers(model, [prompt], tokenizer, 8)[0] for prompt in prompts]
    assert model.training, "the model is left as it was"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "roberta"])
def test_answers_are_those_of_plain_passes(name: str) -> None:
    """Whatever a model remembers while it writes, wherever its positions begin, it says what it has learned."""
    model, tokenizer = make_model(name).eval(), tiny.make_tokenizer()
    model.generation_config.eos_token_id = None
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
        (answer,) = write_answers(model, [prompt], tokenizer, 8)
        assert answer
        assert expected.startswith(answer)  # which ends at the tokenizer's own end


def test_an_answer_ends_at_its_end_token() -> None:
    model, tokenizer = make_model("llama"), tiny.make_tokenizer()
    whole = write_answers(model, PROMPTS[:1], tokenizer, 8)[0].split()
    end = tokenizer.convert_tokens_to_ids(whole[2])
    model.generation_config.eos_token_id = [end]
    ended = write_answers(model, PROMPTS[:1], tokenizer, 8)[0].split()
    assert ended == whole[: whole.index(whole[2]) + 1]


def test_no_more_is_written_than_the_model_can_hold() -> None:
    model, tokenizer = make_model("gpt2"), tiny.make_tokenizer()
    (answer,) = write_answers(model, [[5] * 30], tokenizer, 100)
    assert 0 < len(answer.split()) <= 16, "half of its room, the other half being what is asked"


def test_settings_that_came_with_the_model_do_not_make_it_draw() -> None:
    model, tokenizer = make_model("llama"), tiny.make_tokenizer()
    before = write_answers(model, PROMPTS, tokenizer, 8)
    model.generation_config.update(do_sample=True, temperature=3.0, top_k=7, repetition_penalty=2.0)
    assert write_answers(model, PROMPTS, tokenizer, 8) == before
    torch.manual_seed(0)
    drawn = write_answers(model, PROMPTS, tokenizer, 8, temperature=3.0)
    assert drawn != before


def test_the_end_of_a_turn_ends_an_answer() -> None:
    model, tokenizer = make_model("llama"), tokenizer_of_bytes(CHATML)
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_tokens(model, tokenizer) == sorted({3, tokenizer.eos_token_id, turn_end})
