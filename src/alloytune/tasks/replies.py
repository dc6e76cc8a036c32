"""Texts to be learned as token ids, for models that read and write in one row and for those with two sides."""

import sys
from dataclasses import dataclass, replace
from itertools import chain

from transformers import PreTrainedTokenizerBase

from alloytune.tasks.asked import Asked
from alloytune.tasks.dialogue import UnfitChatError, give_template, mark_answers, render_prompt
from alloytune.tasks.marked import Cut, Marked, cut, cut_right, fit_prompt, mark, mark_after, prompt_ids
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
    """Tokenize an example for a model that reads on and on.

    Of what is too long the passage that is asked about loses its end; else what is asked is cut from the left.
    """
    if asked.is_plain:
        found, prompt = _read_plainly(asked, tokenizer, max_length), tuple[int, ...]()
    else:
        if asked.messages:
            give_template(tokenizer)
        try:
            short, marked = _shorten(asked, tokenizer, max_length)
            ids = _prompt(short, tokenizer)
        except UnfitChatError as error:
            return Tokenized(None, reason=str(error))
        prompt = tuple(fit_prompt(ids, max_length, tokenizer.bos_token_id))
        is_shorter = short is not asked
        if marked is None:
            reply = Reply([IGNORED] * len(prompt), prompt)
            return Tokenized(Example(row, {"input_ids": list(prompt)}, reply), is_shorter or len(prompt) < len(ids))
        found = cut(marked, max_length, tokenizer)
        found = replace(found, is_cut=found.is_cut or is_shorter)
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
    if tokenizer.eos_token_id not in (None, *targets):  # a language's token may stand behind it
        targets = [*targets, tokenizer.eos_token_id]
    if max_length is not None and len(targets) > max_length:
        return Tokenized(None, reason="answer longer than the limit")
    return Tokenized(Example(row, {"input_ids": source}, Reply(targets, tuple(source), asked.wanted)), is_cut)


def tokenize_in_pieces(
    row: str, text: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[Example]:
    """Tokenize a plain text of which all is learned: as many examples as the limit makes of it.

    Each begins with the last token of the one before, as the first of an example is not learned.
    """
    ids = _plain_ids(text, tokenizer)
    length = max_length or len(ids)
    pieces = [ids[start : start + length] for start in range(0, len(ids) - 1, max(length - 1, 1))]
    marked = [Marked(piece, [True] * len(piece)) for piece in pieces]
    return [Example(row, {"input_ids": piece.ids}, Reply(_next_tokens(piece))) for piece in marked]


def _read_plainly(asked: Asked, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Cut:
    ids = _plain_ids(asked.text, tokenizer)
    return cut_right(Marked(ids, [True] * len(ids)), max_length)


def _plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [*prompt_ids(text, tokenizer), *_end(tokenizer)]


def _prompt(asked: Asked, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if asked.messages:
        return mark(render_prompt(asked.messages, tokenizer), [], tokenizer, special=False).ids
    return prompt_ids(asked.text, tokenizer)


def _mark(asked: Asked, tokenizer: PreTrainedTokenizerBase) -> Marked | None:
    """Tokenize an example with its answer; None where that is still to come."""
    if asked.wanted is None:
        return None
    if not asked.messages:
        return mark_after(asked.text, asked.wanted, tokenizer)
    return mark_answers([*asked.messages, {"role": "assistant", "content": asked.wanted}], tokenizer)


def _shorten(asked: Asked, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> tuple[Asked, Marked | None]:
    """Take the end off a passage until the example is within the limit, or no more of it is left; give its tokens."""
    short, marked = asked, _mark(asked, tokenizer)

    def excess() -> int:
        return len(marked.ids if marked else _prompt(short, tokenizer)) - (max_length or sys.maxsize)

    if asked.passage is None or excess() <= 0:
        return short, marked
    passage = asked.messages[-1]["content"][slice(*asked.passage)]
    offsets = tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    starts = [start for start, _ in offsets]
    while starts and (over := excess()) > 0:
        starts, beyond = starts[:-over], starts[-over:]
        short = asked.shortened(beyond[0])
        marked = _mark(short, tokenizer)
    return short, marked


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _next_tokens(marked: Marked) -> list[int]:
    """Give for every token the one after it, where that is learned."""
    pairs = zip(marked.ids[1:], marked.learned[1:], strict=True)
    return list(chain((token if learned else IGNORED for token, learned in pairs), [IGNORED]))
