"""Texts to be learned as token ids, for models that read and write in one row and for those with two sides."""

from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from alloytune.tasks.asked import Asked
from alloytune.tasks.dialogue import UnfitChatError, give_template, mark_answers, render_prompt
from alloytune.tasks.marked import Cut, Marked, cut, cut_right, mark, mark_after, prompt_ids
from alloytune.tasks.masking import IGNORED
from alloytune.tasks.task import Example


@dataclass(frozen=True)
class Reply:
    """What an example is to teach.

    `targets` has for each place of the model's output the token that is right there, or IGNORED. `prompt` are the
    tokens behind which an answer is written, none where that is not asked for; `wanted` the answer as text.
    """

    targets: list[int]
    prompt: tuple[int, ...] = ()
    wanted: str | None = None


@dataclass(frozen=True)
class Tokenized:
    """An example, whether it was cut to the limit, and why there is none."""

    example: Example | None
    is_cut: bool = False
    reason: str = ""


def tokenize_reply(row: str, asked: Asked, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Tokenized:
    """Tokenize an example for a model that reads on and on; what is asked is cut from the left."""
    if asked.messages:
        give_template(tokenizer)
    try:
        prompt = _prompt(asked, tokenizer, max_length)
        if asked.wanted is None and not asked.is_plain:
            return Tokenized(Example(row, {"input_ids": list(prompt)}, Reply([IGNORED] * len(prompt), prompt)))
        found = _mark(asked, tokenizer, max_length)
    except UnfitChatError as error:
        return Tokenized(None, reason=str(error))
    if found.marked is None:
        return Tokenized(None, reason=found.reason)
    reply = Reply(_next_tokens(found.marked), prompt, asked.wanted)
    return Tokenized(Example(row, {"input_ids": found.marked.ids}, reply), found.is_cut)


def tokenize_sides(row: str, asked: Asked, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Tokenized:
    """Tokenize an example for an encoder and a decoder; what is asked is cut from the right, as plain text is."""
    source = tokenizer(asked.as_text)["input_ids"]
    is_cut = max_length is not None and len(source) > max_length
    if is_cut:
        source = tokenizer(asked.as_text, truncation=True, max_length=max_length)["input_ids"]
    if asked.wanted is None:
        return Tokenized(Example(row, {"input_ids": source}, Reply([IGNORED], tuple(source))), is_cut)
    targets = tokenizer(text_target=asked.wanted)["input_ids"]
    if tokenizer.eos_token_id is not None and targets[-1:] != [tokenizer.eos_token_id]:
        targets = [*targets, tokenizer.eos_token_id]
    if max_length is not None and len(targets) > max_length:
        return Tokenized(None, reason="answer longer than the limit")
    return Tokenized(Example(row, {"input_ids": source}, Reply(targets, tuple(source), asked.wanted)), is_cut)


def _prompt(asked: Asked, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> tuple[int, ...]:
    if asked.is_plain:
        return ()
    if asked.messages:
        ids = mark(render_prompt(asked.messages, tokenizer), [], tokenizer, special=False).ids
    else:
        ids = prompt_ids(asked.text, tokenizer)
    return tuple(ids if max_length is None else ids[-max_length:])


def _mark(asked: Asked, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Cut:
    if asked.is_plain:
        ids = [*prompt_ids(asked.text, tokenizer), *_end(tokenizer)]
        return cut_right(Marked(ids, [True] * len(ids)), max_length)
    if not asked.messages:
        return cut(mark_after(asked.text, asked.wanted or "", tokenizer), max_length, tokenizer)
    answer = {"role": "assistant", "content": asked.wanted or ""}
    return cut(mark_answers([*asked.messages, answer], tokenizer), max_length, tokenizer)


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _next_tokens(marked: Marked) -> list[int]:
    """Give for every token the one after it, where that is learned."""
    pairs = zip(marked.ids[1:], marked.learned[1:], strict=True)
    return list(chain((token if learned else IGNORED for token, learned in pairs), [IGNORED]))
