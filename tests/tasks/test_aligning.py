"""Words and tokens: a word is told by a token that has something of it, and cutting takes words off the end."""

from collections.abc import Collection

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alloytune.tasks.aligning import align, blanks_of, wants_blanks, with_blanks
from alloytune.tasks.words import Sentence, glued_words

PIECES = ("<pad>", "<unk>", "<s>", "</s>", "▁", "江", "泽", "▁在", "在", "▁hello", "l", "o")


def sentence_piece() -> PreTrainedTokenizerFast:
    """Make a tokenizer that puts a blank before every word, a token of its own where no piece begins with it."""
    inner = Tokenizer(models.Unigram([(piece, -len(PIECES) + n) for n, piece in enumerate(PIECES)], unk_id=1))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


def byte_level(prefixes: bool) -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes in which blanks belong to the words behind them; the first may get one, too."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefixes)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["the good film", "a film in London", "in the good London"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


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
    words = ["江", "泽", "江", "在"]
    assert glued_words(Sentence(words, [(0, 1), (1, 2), (3, 4), (4, 5)], None)) == {1, 3}
    assert glued_words(Sentence([*words, "NATO", "in", "कि", "ที่", "ไ"], [], None)) == {1, 2, 3, 8}
    tokens, positions = tokens_and_positions(["江", "泽", "江", "在"], glued={1, 3})
    assert tokens == ["<s>", "▁", "江", "泽", "▁", "江", "▁在", "</s>"]
    assert positions == {0: 2, 1: 3, 2: 5, 3: 6}


def test_a_limit_takes_words_off_the_end() -> None:
    tokens, positions = tokens_and_positions(["江", "泽", "江", "泽"], glued={1, 2, 3}, max_length=5)
    assert tokens == ["<s>", "▁", "江", "泽", "</s>"]
    assert positions == {0: 2, 1: 3}


@pytest.mark.parametrize("prefixes", [False, True])
def test_a_list_of_words_is_read_as_its_text(prefixes: bool) -> None:
    tokenizer = byte_level(prefixes)
    text = "the good film in London"
    words = text.split()
    assert wants_blanks(tokenizer) != prefixes
    assert not wants_blanks(sentence_piece())
    given = words if prefixes else with_blanks(words, ())
    encoded = tokenizer(given, is_split_into_words=True)
    assert encoded["input_ids"] == tokenizer(text)["input_ids"]
    assert tokenizer(with_blanks(words, {2}), is_split_into_words=True)["input_ids"] == (
        tokenizer("the goodfilm in London")["input_ids"] if not prefixes else encoded["input_ids"]
    )
    found = align(encoded["input_ids"], encoded.word_ids(), (), blanks_of(tokenizer), None)
    assert list(found.positions) == list(range(5))
