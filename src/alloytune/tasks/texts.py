"""Texts and pairs of texts as a model's input."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alloytune.tasks.task import Batch, Encoded, Example
from alloytune.tasks.tokenized import TokenizedRows, flat

MULTIPLE = 8  # tokens: every length of a batch has kernels of its own, which a processor builds and keeps
ROWS_AT_ONCE = 5_000  # a tokenizer's own account of a text takes kilobytes until it is thrown away


def text_columns(columns: Collection[str]) -> tuple[str, ...]:
    """Give the columns that hold text: text, and text_pair where there is one."""
    return tuple(name for name in ("text", "text_pair") if name in columns)


def encode_texts(
    table: pl.DataFrame,
    targets: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    in_pieces: bool = False,
) -> Encoded:
    """Tokenize the columns `text` and, where there, `text_pair`; each row with its target.

    What is beyond the limit is cut, or makes further examples of the row where a text is read `in_pieces`.
    """
    if not table.height:
        return Encoded([])
    inputs: dict[str, list[np.ndarray]] = {}
    lengths: list[np.ndarray] = []
    sources: list[np.ndarray] = []  # the row of each example
    num_cut = 0
    in_pieces = in_pieces and tokenizer.is_fast and max_length is not None
    for start, part in zip(range(0, table.height, ROWS_AT_ONCE), table.iter_slices(ROWS_AT_ONCE), strict=True):
        texts = part["text"].to_list()
        pairs = part["text_pair"].to_list() if "text_pair" in part.columns else None
        limits = {"truncation": max_length is not None, "max_length": max_length}
        encoded = tokenizer(texts, pairs, return_attention_mask=False, return_overflowing_tokens=in_pieces, **limits)
        of_part = encoded.pop("overflow_to_sample_mapping", range(part.height))
        for key, values in encoded.items():
            inputs.setdefault(key, []).append(flat(values))
        lengths.append(np.array([len(ids) for ids in encoded["input_ids"]]))
        sources.append(start + np.asarray(of_part))
        num_cut += 0 if in_pieces else _count_cut(encoded, texts, pairs, tokenizer, max_length)
    numbers, names = np.concatenate(sources).tolist(), row_names(table)
    rows = TokenizedRows([names[n] for n in numbers], inputs, np.concatenate(lengths), [targets[n] for n in numbers])
    return Encoded(rows, num_cut, notes=note_pieces(len(rows) - table.height, max_length))


def note_pieces(number: int, max_length: int | None) -> tuple[str, ...]:
    """Say how many examples are further pieces of texts that are longer than the limit."""
    return (f"texts longer than {max_length} tokens are read in pieces: {number:,} more examples",) if number else ()


def row_names(table: pl.DataFrame) -> list[str]:
    """Say where each row came from: the column `row`, or its number from 1."""
    return table["row"].to_list() if "row" in table.columns else [str(n + 1) for n in range(table.height)]


def next_length(length: int) -> int:
    """Give the length that texts of `length` tokens are padded to: the next multiple of MULTIPLE."""
    return -(-length // MULTIPLE) * MULTIPLE


def padded_length(longest: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Give the length to which texts are padded whose longest is so long: the next one, if the model reads as much."""
    return next_length(longest) if next_length(longest) <= tokenizer.model_max_length else longest


def pad_inputs(
    inputs: Sequence[Mapping[str, Sequence[int]]], tokenizer: PreTrainedTokenizerBase, side: str | None = None
) -> dict[str, Tensor]:
    """Pad to the longest of these and on to the padded length.

    Gives tensors of [rows, places]; `side` is the tokenizer's own where None.
    """
    length = padded_length(max(len(one["input_ids"]) for one in inputs), tokenizer)
    on_left = (side or tokenizer.padding_side) == "left"
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    padded = {key: np.full((len(inputs), length), padding.get(key, 0)) for key in inputs[0]}
    mask = np.zeros((len(inputs), length), dtype=np.int64)
    for row, one in enumerate(inputs):
        own = len(one["input_ids"])
        places = slice(length - own, length) if on_left else slice(own)
        mask[row, places] = 1
        for key, values in one.items():
            padded[key][row, places] = values
    with_mask = {"attention_mask": mask} if "attention_mask" in tokenizer.model_input_names else {}
    return {key: torch.from_numpy(values) for key, values in (padded | with_mask).items()}


def collate_texts(examples: Sequence[Example], targets: Tensor, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Pad these examples, one target for each."""
    return Batch(
        inputs=pad_inputs([example.inputs for example in examples], tokenizer),
        targets=targets,
        rows=tuple(example.row for example in examples),
        num_tokens=sum(example.num_tokens for example in examples),
        num_targets=len(examples),
    )


def _count_cut(
    encoded: Any,
    texts: list[str],
    pairs: list[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> int:
    """Count the rows that lost tokens; slow tokenizers do not say, but only rows that fill the limit can have."""
    if max_length is None:
        return 0
    if tokenizer.is_fast:
        return sum(bool(row.overflowing) for row in encoded.encodings)
    full = [n for n, ids in enumerate(encoded["input_ids"]) if len(ids) >= max_length]
    if not full:
        return 0
    whole = tokenizer([texts[n] for n in full], [pairs[n] for n in full] if pairs else None)
    return sum(len(ids) > max_length for ids in whole["input_ids"])
