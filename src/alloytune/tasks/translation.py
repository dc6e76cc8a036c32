"""Translation of a source text: by an encoder with a decoder, or by a decoder that is asked to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
from transformers import PreTrainedTokenizerBase

from alloytune.errors import InputError
from alloytune.tasks.task import Batch, Encoded
from alloytune.tasks.writing import Writing, Written

_KEYS = ("task.translation.source_language", "task.translation.target_language")


@dataclass(frozen=True)
class Translation(Writing):
    """A source and its translation; the languages are those of the model's tokenizer, where it has several."""

    source_language: str | None = None
    target_language: str | None = None
    pipeline: ClassVar[str] = "translation"
    metrics: ClassVar[tuple[str, ...]] = ("chrf", "bleu", "exact_match")
    asks: ClassVar[str] = "Translate:\n\n{source}"

    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize rows in the languages; raises InputError where the tokenizer does not know them, or needs some."""
        tokens = self._languages(tokenizer)
        if tokens:
            tokenizer.src_lang, tokenizer.tgt_lang = tokens
        return super().encode(table, tokenizer, max_length)

    def answers(self, model: Any, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> list[Written]:
        """Give losses and translations; the model's own settings say with which language's token to begin."""
        tokens = self._languages(tokenizer)
        if tokens:
            model.generation_config.forced_bos_token_id = tokens[self.target_language]
        return super().answers(model, batch, tokenizer)

    def _languages(self, tokenizer: Any) -> Mapping[str | None, int]:
        """Give the tokens of both languages; none for a tokenizer that knows of no languages."""
        named = (self.source_language, self.target_language)
        if not hasattr(tokenizer, "src_lang"):
            if any(named):
                what = "the model's tokenizer has no languages to choose from"
                raise InputError(_KEYS[named[0] is None], what, "remove it, and say in `prompt` what is asked")
            return {}
        found: dict[str | None, int] = {}
        for key, name in zip(_KEYS, named, strict=True):
            if name is None:
                what = "the model translates between many languages, and this one is not named"
                raise InputError(key, what, "name it as the model's card does, such as eng_Latn or en_XX")
            token = _token_of(name, tokenizer)
            if token is None:
                raise InputError(key, f"the model knows no language {name!r}", "name it as the model's card does")
            found[name] = token
        return found


def _token_of(language: str, tokenizer: Any) -> int | None:
    """Give the token that stands for a language; None where there is none."""
    if hasattr(tokenizer, "get_lang_id"):  # of M2M100, whose tokens are not called as the languages are
        try:
            return int(tokenizer.get_lang_id(language))
        except KeyError:
            return None
    token = tokenizer.convert_tokens_to_ids(language)
    return None if token in (None, tokenizer.unk_token_id) else int(token)


TASK = Translation
