"""Encoders with decoders, built tiny, learn a small real parallel set by heart: English and German sentences."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import alloytune

PAIRS = {
    "The file does not exist.": "Die Datei ist nicht vorhanden.",
    "Permission denied": "Keine Berechtigung",
    "Out of memory": "Kein Speicher mehr verfügbar",
    "The device is busy.": "Das Gerät ist belegt.",
    "Invalid argument": "Ungültiges Argument",
    "No space left on device": "Auf dem Gerät ist kein Speicherplatz mehr verfügbar",
    "The connection was refused.": "Die Verbindung wurde abgelehnt.",
    "The operation timed out.": "Die Zeit für den Vorgang ist abgelaufen.",
    "Do you want to save the file?": "Möchten Sie die Datei speichern?",
    "The password is wrong.": "Das Passwort ist falsch.",
    "Please wait a moment.": "Bitte warten Sie einen Augenblick.",
    "The printer is out of paper.": "Der Drucker hat kein Papier mehr.",
    "There are no new messages.": "Es gibt keine neuen Nachrichten.",
    "The folder is empty.": "Der Ordner ist leer.",
    "Open a new window": "Ein neues Fenster öffnen",
    "Close all windows": "Alle Fenster schließen",
}
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def save_tokenizer(folder: Path) -> int:
    """Save a tokenizer of all words of both languages; give their number."""
    cut = pre_tokenizers.Whitespace()
    words = sorted({word for text in (*PAIRS, *PAIRS.values()) for word, _ in cut.pre_tokenize_str(text)})
    inner = Tokenizer(WordLevel({word: n for n, word in enumerate((*SPECIAL, *words))}, unk_token="<unk>"))
    inner.pre_tokenizer = cut
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(folder)
    return len(SPECIAL) + len(words)


def save_model(folder: Path, family: str) -> Path:
    """Save a random T5, BART, or RoBERTa under a RoBERTa that decodes, with width 64."""
    torch.manual_seed(1)
    size = save_tokenizer(folder)
    shared: dict[str, Any] = {"vocab_size": size, "d_model": 64, "pad_token_id": 0, "eos_token_id": 3}
    if family == "t5":
        config = T5Config(
            **shared, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0, dropout_rate=0.0
        )
        T5ForConditionalGeneration(config).save_pretrained(folder)
    elif family == "roberta":
        sides = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "hidden_size": 64}
        kept = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64}
        tokens = {"vocab_size": size, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        side = RobertaConfig(**sides, **kept, **tokens)
        both = EncoderDecoderConfig.from_encoder_decoder_configs(side, side, decoder_start_token_id=2, pad_token_id=0)
        EncoderDecoderModel(both).save_pretrained(folder)
    else:
        sides = {
            f"{side}_{key}": number
            for side in ("encoder", "decoder")
            for key, number in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))
        }
        config = BartConfig(
            **shared,
            **sides,
            bos_token_id=2,
            decoder_start_token_id=3,
            forced_eos_token_id=None,
            dropout=0.0,
            max_position_embeddings=64,
        )
        BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart", "roberta"])
def test_sentences_are_learned_by_heart(family: str, tmp_path: Path) -> None:
    pairs = pl.DataFrame({"source": list(PAIRS), "target": list(PAIRS.values())})
    for split in ("train", "validation"):
        pairs.with_columns(pl.col("source") + (" ." if split == "validation" else "")).write_csv(
            tmp_path / f"{split}.csv"
        )
    tuned = alloytune.tune(
        tmp_path / "train.csv",
        str(save_model(tmp_path / family, family)),
        {
            "task": {"translation": {"generate": 0, "max_new_tokens": 16}},
            "data": {
                "validation": str(tmp_path / "validation.csv"),
                "split": {"test": 0},
                "near_duplicates": False,
            },
            "batch": 8,
            "stages": [{"name": "full", "train": "all", "rate": 3e-3, "until": {"epochs": 150}, "keep": "last"}],
        },
        output=tmp_path / "run",
    )
    assert tuned.evaluate_table(pairs)["values"]["loss"] < 0.05
    written = tuned.predict_table(pairs.select("source"))["answer"]
    plain = [
        tuned.tokenizer.decode(tuned.tokenizer(text)["input_ids"], skip_special_tokens=True) for text in PAIRS.values()
    ]
    assert written.to_list() == plain
