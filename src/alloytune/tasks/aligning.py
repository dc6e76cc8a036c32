"""Which tokens words become, and which of them stands for a word."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Aligned:
    """The places of the tokens that stay, and the number among them of the token that stands for each word."""

    kept: list[int]
    positions: dict[int, int]  # word -> token


def align(
    ids: Sequence[int],
    words: Sequence[int | None],
    glued: Collection[int],
    is_blank: Callable[[int], bool],
    max_length: int | None,
) -> Aligned:
    """Choose the tokens of a sentence that stay, at most `max_length`, and let one stand for each word.

    `words` are the words that the tokens are of, None for those that a tokenizer puts around a text; these stay.
    Tokenizers of SentencePiece put a blank before every word; where that is a token of its own, a word is told by the
    token after it, and the blank before a `glued` word, which has none in the text, is left out.
    """
    solid = {word for token, word in zip(ids, words, strict=True) if not is_blank(token)}
    kept = [
        place
        for place, word in enumerate(words)
        if word is None or not is_blank(ids[place]) or word not in glued or word not in solid
    ]
    kept = _cut(kept, words, max_length)
    positions: dict[int, int] = {}
    for number, place in enumerate(kept):
        word = words[place]
        if word is not None and (word not in solid or not is_blank(ids[place])):
            positions.setdefault(word, number)
    return Aligned(kept, positions)


def with_blanks(words: Sequence[str], glued: Collection[int]) -> list[str]:
    """Put the blank before every word that has one in its text, for tokenizers of which `wants_blanks` is true."""
    return [f" {word}" if n and n not in glued else word for n, word in enumerate(words)]


def wants_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer reads a list of words as one text without blanks, as those of GPT-2 and RoBERTa do."""

    def ids(text: str | list[str]) -> list[int]:
        is_split = not isinstance(text, str)
        return list(tokenizer(text, is_split_into_words=is_split, add_special_tokens=False)["input_ids"])

    words = ["a", "a"]
    whole = ids(" ".join(words))
    return ids(words) != whole and ids(with_blanks(words, ())) == whole


def blanks_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bool]:
    """Give what tells whether a token is a blank and nothing else."""

    @cache
    def is_blank(token: int) -> bool:
        return not str(tokenizer.decode([token])).strip()

    return is_blank


def _cut(kept: list[int], words: Sequence[int | None], max_length: int | None) -> list[int]:
    """Take the last tokens of words off until the limit is kept; those that a tokenizer puts at the end stay."""
    if max_length is None or len(kept) <= max_length:
        return kept
    last = max((place for place, word in enumerate(words) if word is not None), default=-1)
    ending = [place for place in kept if place > last]
    return [*kept[: max_length - len(ending)], *ending]
