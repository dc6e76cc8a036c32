"""The texts in a call of a model: where each stands, and a key that only equal texts share."""

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from alloytune.models.frozen_prefix import Inputs

_BY_PLACE = ("input_ids", "token_type_ids", "position_ids")  # [rows, places], as the mask of padding is
_BY_ROW = ("decoder_input_ids",)  # [rows, places of the other side]
_MASK = "attention_mask"


@dataclass(frozen=True)
class Text:
    """One text in a call: at `length` places of a row from `start` on. `may_be_filler`: it may stand for nothing."""

    row: int
    start: int
    length: int
    key: bytes
    may_be_filler: bool = False


@dataclass(frozen=True)
class Call:
    """The texts of a call, how many places its rows have on either side, and a key of the call as a whole."""

    texts: tuple[Text, ...]
    num_rows: int
    num_places: tuple[int, int]
    key: bytes


def read_call(inputs: Inputs) -> Call | None:
    """Find the texts in what a model is called with; None where their places or their keys cannot be told.

    Texts are what a mask of padding leaves, one in each row. Without a mask, packed rows have a text wherever positions
    begin anew. On a two-sided model a text is a row: both sides, padding behind the other one left out of its key.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    if tensors.keys() - {*_BY_PLACE, *_BY_ROW, _MASK}:
        return None
    arrays = {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in tensors.items()}
    ids = arrays["input_ids"]
    by_place = {name: arrays[name] for name in _BY_PLACE if name in arrays}
    others = [arrays[name] for name in _BY_ROW if name in arrays]
    if any(array.shape != ids.shape for array in by_place.values()) or any(len(array) != len(ids) for array in others):
        return None
    spans = _spans(arrays)
    if spans is None or (others and len(spans) != len(ids)):
        return None
    texts = []
    for row, start, length in spans:
        places = slice(start, start + length)
        # packed rows are filled up with token 0; a text of that token alone is looked for like any other
        is_zero = _MASK not in arrays and start + length == ids.shape[1] and not ids[row, places].any()
        texts.append(Text(row, start, length, _key(by_place, others, row, places), is_zero))
    num_places = (ids.shape[1], others[0].shape[1] if others else ids.shape[1])
    return Call(tuple(texts), len(ids), num_places, _digest([arrays[name] for name in sorted(arrays)], *sorted(arrays)))


def _spans(arrays: dict[str, np.ndarray]) -> list[tuple[int, int, int]] | None:
    """Give row, start and length of every text; None where padding stands within one."""
    rows, places = arrays["input_ids"].shape
    if _MASK in arrays:
        mask = arrays[_MASK].astype(bool)
        if mask.shape != (rows, places):
            return None
        starts, lengths = mask.argmax(1), mask.sum(1)
        behind = np.arange(places) - starts[:, None]
        is_whole = (mask == ((behind >= 0) & (behind < lengths[:, None]))).all()
        return list(zip(range(rows), starts.tolist(), lengths.tolist(), strict=True)) if is_whole else None
    if "position_ids" not in arrays:
        return [(row, 0, places) for row in range(rows)]
    begins = arrays["position_ids"] == 0
    begins[:, 0] = True
    found = []
    for row in range(rows):
        starts = [*np.flatnonzero(begins[row]).tolist(), places]
        found += [(row, start, end - start) for start, end in pairwise(starts)]
    return found


def _key(by_place: dict[str, np.ndarray], others: list[np.ndarray], row: int, places: slice) -> bytes:
    found = {name: array[row, places] for name, array in by_place.items()}
    if np.array_equal(found.get("position_ids", ()), np.arange(places.stop - places.start)):
        del found["position_ids"]  # those that a text has by itself
    return _digest([*found.values(), *(_without_padding(array[row]) for array in others)], *found)


def _without_padding(row: np.ndarray) -> np.ndarray:
    """Leave out all but the first of equal tokens at the end: what stands behind a place does not bear on it."""
    different = np.flatnonzero(row != row[-1])
    return row[: int(different[-1]) + 2] if len(different) else row[:1]


def _digest(arrays: list[np.ndarray], *names: str) -> bytes:
    digest = hashlib.blake2b(repr(names).encode(), digest_size=16)
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(array.tobytes())
    return digest.digest()
