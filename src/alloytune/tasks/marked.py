"""Token ids with a mark on those that are learned, cut to a limit without losing what is learned unseen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from alloytune.errors import InputError

Span = tuple[int, int]  # from this character to before that one


@dataclass(frozen=True)
class Marked:
    """Tokens of one example. `learned` tells of each whether it carries loss; the first never does."""

    ids: list[int]
    learned: list[bool]

    @property
    def num_learned(self) -> int:
        """Give the tokens that carry loss."""
        return sum(self.learned[1:])


@dataclass(frozen=True)
class Cut:
    """What is left of an example under a limit: None where nothing can be learned, with the reason."""

    marked: Marked | None
    is_cut: bool = False
    reason: str = ""


def mark(text: str, spans: Sequence[Span], tokenizer: PreTrainedTokenizerBase, *, special: bool) -> Marked:
    """Tokenize a text and mark the tokens that begin within a span; `special` adds the tokenizer's own tokens around.

    A token that begins before a span and ends in it belongs to what is before: a model that answers is given that much.
    """
    return _mark_within(spans, _tokenize(text, tokenizer, special=special))


def mark_after(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Marked:
    """Tokenize an answer behind its prompt as they stand; learned are the answer and the end token after it.

    The beginning token, where the tokenizer puts one, stands first. Where a token would reach from the prompt into the
    answer they are tokenized apart: a model that answers is given the prompt alone, and all of the answer is learned.
    """
    seam, text = len(prompt), prompt + answer
    encoded = _tokenize(text, tokenizer, special=True)
    if any(start < seam < end for start, end in encoded["offset_mapping"]):
        before, own = prompt_ids(prompt, tokenizer), _tokenize(answer, tokenizer, special=False)["input_ids"]
        ids, learned = [*before, *own], [False] * len(before) + [True] * len(own)
    else:
        ids, learned = _without_end(_mark_within([(seam, len(text))], encoded), text, tokenizer)
    end = tokenizer.eos_token_id
    return Marked(ids, learned) if end is None else Marked([*ids, end], [*learned, True])


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenize a prompt that an answer is to follow: the tokenizer's own tokens before it, none behind it."""
    return _without_end(mark(prompt, [], tokenizer, special=True), prompt, tokenizer)[0]


def fit_prompt(ids: Sequence[int], max_length: int | None, begin: int | None) -> Sequence[int]:
    """Take tokens off the left of a prompt until a limit is kept; the token that begins every text stays."""
    if max_length is None or len(ids) <= max_length:
        return ids
    return [begin, *ids[len(ids) - max_length + 1 :]] if ids[0] == begin else ids[len(ids) - max_length :]


def cut(marked: Marked, max_length: int | None, tokenizer: PreTrainedTokenizerBase) -> Cut:
    """Take tokens off the left until the limit is kept; a beginning token stays.

    The last answer is never cut: where it does not fit with one token before it, the example is left out.
    """
    if marked.num_learned == 0:
        return Cut(None, reason="nothing to learn in it")
    too_many = len(marked.ids) - (max_length or len(marked.ids))
    if too_many <= 0:
        return Cut(marked)
    start = last_answer(marked)
    kept = 1 if marked.ids[0] == tokenizer.bos_token_id and not marked.learned[0] else 0
    if start - kept - too_many < (1 - kept):
        return Cut(None, reason="answer longer than the limit")
    ids = marked.ids[:kept] + marked.ids[kept + too_many :]
    return Cut(Marked(ids, marked.learned[:kept] + marked.learned[kept + too_many :]), is_cut=True)


def cut_right(marked: Marked, max_length: int | None) -> Cut:
    """Take tokens off the right until the limit is kept, as for plain text, all of which is learned."""
    if marked.num_learned == 0:
        return Cut(None, reason="nothing to learn in it")
    if max_length is None or len(marked.ids) <= max_length:
        return Cut(marked)
    return Cut(Marked(marked.ids[:max_length], marked.learned[:max_length]), is_cut=True)


def last_answer(marked: Marked) -> int:
    """Give the place at which the last run of learned tokens begins."""
    place = len(marked.learned)
    while not marked.learned[place - 1]:
        place -= 1
    while place > 0 and marked.learned[place - 1]:
        place -= 1
    return place


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool) -> Any:
    if not tokenizer.is_fast:
        raise InputError(
            "model",
            "its tokenizer does not say where in the text its tokens stand, which tells answers from prompts",
            "save a fast tokenizer (tokenizer.json) beside the model",
        )
    return tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False)


def _mark_within(spans: Sequence[Span], encoded: Any) -> Marked:
    offsets = encoded["offset_mapping"]
    learned = [end > start and any(first <= start < last for first, last in spans) for start, end in offsets]
    return Marked(list(encoded["input_ids"]), learned)


def _without_end(marked: Marked, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Take off what the tokenizer puts behind every text, such as [SEP]."""
    own = tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    start = next((n for n in range(len(marked.ids)) if marked.ids[n : n + len(own)] == own), 0)
    end = start + len(own)
    return marked.ids[:end], marked.learned[:end]
