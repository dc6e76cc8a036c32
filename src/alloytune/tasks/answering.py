"""Answers in a model's own words: in batches, greedy unless asked otherwise, up to the token that ends them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from alloytune.tasks.dialogue import UnfitChatError, mark_answers
from alloytune.tasks.marked import fit_prompt
from alloytune.trying import evaluating


@torch.no_grad()
def write_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    streamer: Any = None,
) -> list[str]:
    """Give the text that a model writes behind each prompt, special tokens left out.

    Prompts are padded on the left, so that all end where the answers begin (on the right for encoders). With a
    `temperature` above 0 words are drawn, from torch's random numbers; else the likeliest is taken. Prompts that leave
    a decoder too little room for an answer lose their beginning, but for the token that begins every text.
    """
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    room = model_room(model, tokenizer)
    if room is not None and not is_encoder_decoder:
        limit = max(room - max_new_tokens, room // 2)
        prompts = [fit_prompt(prompt, limit, tokenizer.bos_token_id) for prompt in prompts]
    ids, mask = _pad(prompts, _padding_token(model, tokenizer), left=not is_encoder_decoder)
    if room is not None and not is_encoder_decoder:
        max_new_tokens = min(max_new_tokens, room - ids.shape[1])
    positions = {} if is_encoder_decoder else _positions(model, mask)
    with evaluating(model), torch.autocast(model.device.type, enabled=False):  # would cast weights for every token
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            **positions,
            generation_config=_settings(model, tokenizer, max_new_tokens, temperature),
            streamer=streamer,
        )
    begin = 1 if is_encoder_decoder else ids.shape[1]
    return [tokenizer.decode(row[begin:], skip_special_tokens=True).strip() for row in written]


def model_room(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Give the tokens that a model can read and write together; None where its config does not say.

    The tokenizer knows of positions that the config counts and no token has, as RoBERTa's.
    """
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(room, tokenizer.model_max_length) if isinstance(room, int) and room > 0 else None


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Give the tokens that end an answer: the model's and the tokenizer's own, and that of a turn in the template."""
    given = model.generation_config.eos_token_id
    found = given if isinstance(given, list) else [given]
    return sorted({token for token in (*found, tokenizer.eos_token_id, _turn_end(tokenizer)) if token is not None})


def _settings(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Say how to write; what a model's own settings say of sampling is left aside."""
    own = model.generation_config
    start = own.decoder_start_token_id
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    how = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=1,
        eos_token_id=end_tokens(model, tokenizer),
        pad_token_id=_padding_token(model, tokenizer),
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=start,
        **({"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0} | how),
    )


def _positions(model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """Give the positions of prompts, [prompts, tokens], to a model that counts them from behind its padding row.

    So RoBERTa does and its kin; transformers 5.23 has them write at positions counted from 0.
    """
    for name, module in model.named_modules():
        if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return {"position_ids": (mask.cumsum(1) * mask + module.padding_idx).to(module.weight.device)}
    return {}


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    try:
        marked = mark_answers(talk, tokenizer)
    except UnfitChatError:
        return None
    last = [token for token, learned in zip(marked.ids, marked.learned, strict=True) if learned][-1]
    return last if last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder else None


def _padding_token(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    token = tokenizer.pad_token_id
    return int(model.config.pad_token_id if token is None else token)


def _pad(prompts: Sequence[Sequence[int]], padding: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Give prompts of one length and their mask, [prompts, tokens]."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(length - len(prompt), length) if left else slice(0, len(prompt))
        ids[row, place] = torch.tensor(list(prompt))
        mask[row, place] = 1
    return ids, mask
