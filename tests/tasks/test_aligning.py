"""Words and tokens: a word is told by a token that has something of it, and cutting takes words off the end."""

from collections.abc import Collection

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from alloytune.tasks.aligning import align, blanks_of, glued_words

PIECES = ("<pad>", "<unk>", "<s>", "</s>", "▁", "江", "泽", "▁在", "在", "▁hello", "l", "o")


def sentence_piece() -> PreTrainedTokenizerFast:
    """Make a tokenizer that puts a blank before every word, a token of its own where no piece begins with it."""
    inner = Tokenizer(models.Unigram([(piece, -len(PIECES) + n) for n, piece in enumerate(PIECES)], unk_id=1))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


def tokens_and_positions(
    words: list[str], glued: Collection[int] = (), max_length: int | None = None
) -> tuple[list[str], dict[int, int]]:
    tokenizer = sentence_piece()
    encoded = tokenizer(words, is_split_into_words=True)
    found = align(encoded["input_ids"], encoded.word_ids(), glued, blanks_of(tokenizer), max_length)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    return [tokens[place] for place in found.kept], found.positions


def test_a_word_is_told_by_a_token_that_has_something_of_it() -> None:
    tokens, positions = tokens_and_positions(["江", "在", "hello"])
    assert tokens == ["<s>", "▁", "江", "▁在", "▁hello", "</s>"]
    assert positions == {0: 2, 1: 3, 2: 4}


def test_a_blank_that_the_text_does_not_have_is_left_out() -> None:
    assert glued_words([(0, 1), (1, 2), (3, 4), (4, 5)]) == {1, 3}
    tokens, positions = tokens_and_positions(["江", "泽", "江", "在"], glued={1, 3})
    assert tokens == ["<s>", "▁", "江", "泽", "▁", "江", "▁在", "</s>"]
    assert positions == {0: 2, 1: 3, 2: 5, 3: 6}


def test_a_limit_takes_words_off_the_end() -> None:
    tokens, positions = tokens_and_positions(["江", "泽", "江", "泽"], glued={1, 2, 3}, max_length=5)
    assert tokens == ["<s>", "▁", "江", "泽", "</s>"]
    assert positions == {0: 2, 1: 3}
