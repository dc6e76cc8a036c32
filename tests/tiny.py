"""Tiny models and tables, built on the spot: two layers, width 16, a vocabulary of whole words."""

import random
from pathlib import Path

import polars as pl
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from alloytune.tasks.classification import Classification

GOOD = ("fine", "good", "great", "lovely", "superb")
BAD = ("awful", "bad", "dull", "poor", "weak")
PLAIN = ("a", "and", "book", "film", "it", "meal", "one", "plot", "room", "show", "that", "the", "this", "was", "we")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*SPECIAL, *GOOD, *BAD, *PLAIN, *(str(number) for number in range(60)))
WIDTH = 16
TASK = Classification(("bad", "good"))


def make_table(rows: int, seed: int = 0) -> pl.DataFrame:
    """Make distinct sentences whose label can be learned from one word."""
    draw = random.Random(seed)
    texts, labels = [], []
    for number in range(rows):
        label = ("bad", "good")[number % 2]
        words = [*draw.choices(PLAIN, k=draw.randint(2, 9)), str(draw.randrange(60)), str(draw.randrange(60))]
        words.insert(draw.randrange(len(words)), draw.choice(GOOD if label == "good" else BAD))
        texts.append(" ".join(words))
        labels.append(label)
    return pl.DataFrame({"text": texts, "label": labels}).unique("text", keep="first", maintain_order=True)


def make_tokenizer(
    *, padding: bool = True, special: tuple[str, ...] = SPECIAL, padding_side: str = "right", end: str | None = "[SEP]"
) -> PreTrainedTokenizerFast:
    """Make a tokenizer of whole words that puts [CLS] and [SEP] around them; `special` orders tokens 0 to 3."""
    number_of = {word: number for number, word in enumerate((*special, *WORDS[len(SPECIAL) :]))}
    inner = Tokenizer(WordLevel(number_of, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, number_of[token]) for token in ("[CLS]", "[SEP]")],
    )
    pad = {"pad_token": "[PAD]"} if padding else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        mask_token="[UNK]",  # what a model sees instead of a word: any token will do
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token=end,
        model_max_length=32,
        padding_side=padding_side,
        **pad,
    )


def save_bert(folder: Path, *, layers: int = 2, dropout: float = 0.1, spread: float = 0.02) -> Path:
    """Save a random BERT without a classification head, its weights drawn with a standard deviation of `spread`."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=spread,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_llama(folder: Path) -> Path:
    """Save a random Llama whose tokenizer has no padding token."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=32,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(padding=False).save_pretrained(folder)
    return folder


def save_gpt2(folder: Path) -> Path:
    """Save a random GPT-2: fused projections in Conv1D, tied embeddings."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=3
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
