"""What frozen layers gave, kept by block: without padding, in memory up to a limit, beyond it on disk.

A block is what one call of the model gave, and its key is made of everything that bears on that: the prefix (weights,
buffers, config, precision) and all inputs of the call. What is read under a key is so what would be computed anew, to
the bit, whoever put it there: another epoch, stage, trial, or a run that was killed.
"""

import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from mmap import ALLOCATIONGRANULARITY, mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alloytune.errors import InputError
from alloytune.models.frozen_prefix import Hidden
from alloytune.train.calls import Call, Text

IN_MEMORY = 2**29  # bytes; what is read back from disk costs a tenth of computing it, or less
SEGMENT = 2**28  # bytes of the file on disk that are mapped at once
ALIGNED = 64  # bytes at which a tensor on disk may begin


@dataclass(frozen=True)
class Block:
    """Hidden states of the texts of a call, one after another: of each chain [places, width].

    `starts` gives for each chain where the hidden states of every text begin, and where those of the last one end;
    `dtypes` are those that they had.
    """

    keys: tuple[bytes, ...]
    hidden: Hidden
    starts: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @cached_property
    def numbers(self) -> dict[bytes, int]:
        """Give the number of a text by its key, the first of equal ones."""
        return {key: number for number, key in reversed(list(enumerate(self.keys)))}

    @property
    def num_bytes(self) -> int:
        """Give how much it holds."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.hidden)


def cut_block(call: Call, hidden: Hidden, dtype: torch.dtype) -> Block:
    """Take padding out of hidden states of a call, [rows, places, width] of each chain, into main memory.

    Those of a decoder are kept with padding: nothing behind a place bears on it, and no mask tells what is padding.
    """
    pieces = [[states[text.row, text.start : text.start + text.length] for text in call.texts] for states in hidden[:1]]
    pieces += [[states[text.row] for text in call.texts] for states in hidden[1:]]
    starts = [(0, *accumulate(len(piece) for piece in chain)) for chain in pieces]
    with torch.inference_mode(False):  # what is kept while scoring may be read in training
        kept = [
            torch.empty(ends[-1], states.shape[2], dtype=dtype) for ends, states in zip(starts, hidden, strict=True)
        ]
    for flat, chain in zip(kept, pieces, strict=True):
        flat.copy_(torch.cat(chain))
    keys = tuple(text.key for text in call.texts)
    return Block(keys, tuple(kept), tuple(starts), tuple(states.dtype for states in hidden))


Found = Sequence[tuple[Block, int] | None]  # the block of every text of a call and its number there; None for filler


def look_up(call: Call, blocks: Sequence[Block]) -> Found | None:
    """Find every text of a call in the first of these blocks that has it; None where one is missing."""
    found = [
        next(((block, block.numbers[text.key]) for block in blocks if text.key in block.numbers), None)
        for text in call.texts
    ]
    missing = [text for text, place in zip(call.texts, found, strict=True) if place is None]
    return None if len(missing) == len(found) or not all(text.may_be_filler for text in missing) else found


def lay_out(call: Call, found: Found, device: torch.device) -> Hidden:
    """Give hidden states as a call has them, [rows, places, width] of each chain; zero where there is padding."""
    like, _ = next(filter(None, found))
    laid_out = []
    for chain, dtype in enumerate(like.dtypes):
        shape = (call.num_rows, call.num_places[min(chain, 1)], like.hidden[chain].shape[1])
        states = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        for text, place in zip(call.texts, found, strict=True):
            if place is not None:
                _put(states, chain, text, *place)
        laid_out.append(states.to(device, non_blocking=True))
    return tuple(laid_out)


def _put(states: Tensor, chain: int, text: Text, block: Block, number: int) -> None:
    begin, end = block.starts[chain][number], block.starts[chain][number + 1]
    first = text.start if chain == 0 else 0
    count = min(end - begin, states.shape[1] - first)
    states[text.row, first : first + count] = block.hidden[chain][begin : begin + count]


class Shelf:
    """The blocks of one prefix, by the keys of their calls."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: dict[bytes, Block] = {}
        self._disk: _Disk | None = None
        self.in_memory = 0
        self.on_disk = 0

    @property
    def num_bytes(self) -> int:
        """Give how much is kept."""
        return self.in_memory + self.on_disk

    def get(self, key: bytes) -> Block | None:
        """Give the block of a call."""
        return self._blocks.get(key)

    def put(self, key: bytes, block: Block) -> Block:
        """Keep the block of a call, and give it back from where it is kept."""
        if self.in_memory + block.num_bytes <= self._limit:
            self.in_memory += block.num_bytes
        else:
            block = replace(block, hidden=tuple(map(self._spill, block.hidden)))
            self.on_disk += block.num_bytes
        self._blocks[key] = block
        return block

    def _spill(self, tensor: Tensor) -> Tensor:
        """Write a tensor to disk and give it mapped into memory."""
        try:
            self._disk = self._disk or _Disk()
            return self._disk.hold(tensor)
        except OSError as error:
            what = f"{tempfile.gettempdir()} has no room for what frozen layers gave ({error.strerror})"
            raise InputError("cache", what, "set cache: false in the stage, or point TMPDIR elsewhere") from None


class _Disk:
    """A file without a name, which is gone when we are, mapped into memory by large segments.

    Every mapping holds an open file, of which a process may have a thousand.
    """

    def __init__(self) -> None:
        self._file: Any = tempfile.TemporaryFile(prefix="alloytune-")  # noqa: SIM115 - closed with the shelf
        weakref.finalize(self, self._file.close)
        self._segment = np.empty(0, np.uint8)
        self._begin = self._used = 0  # of the segment, in the file and in it

    def hold(self, tensor: Tensor) -> Tensor:
        """Write a tensor, so that a full disk says so, and give it as it stands in the file."""
        content = tensor.contiguous().flatten().view(torch.uint8).numpy()
        if self._used + len(content) > len(self._segment):
            self._open(max(SEGMENT, -(-len(content) // ALLOCATIONGRANULARITY) * ALLOCATIONGRANULARITY))
        self._file.seek(self._begin + self._used)
        self._file.write(content.data)
        self._file.flush()
        held = self._segment[self._used : self._used + len(content)]
        self._used += -(-len(content) // ALIGNED) * ALIGNED
        return torch.from_numpy(held).view(tensor.dtype).view(tensor.shape)

    def _open(self, size: int) -> None:
        """Make the file longer, which takes no room yet, and map what was added."""
        self._begin, self._used = self._begin + len(self._segment), 0
        self._file.truncate(self._begin + size)
        self._segment = np.frombuffer(mmap(self._file.fileno(), size, offset=self._begin), np.uint8)


class Activations:
    """The shelves of all prefixes that a process has met, by their fingerprints.

    The longest unused make room for a new one, as soon as half of `limit`, in bytes of memory, is taken.
    """

    def __init__(self, limit: int = IN_MEMORY) -> None:
        self._limit = limit
        self._shelves: dict[bytes, Shelf] = {}

    def shelf(self, fingerprint: bytes) -> Shelf:
        """Give the shelf of a prefix, empty where it is new."""
        known = self._shelves.pop(fingerprint, None)
        if known is None:
            while sum(shelf.in_memory for shelf in self._shelves.values()) > self._limit // 2:
                del self._shelves[next(iter(self._shelves))]
            known = Shelf(self._limit - sum(shelf.in_memory for shelf in self._shelves.values()))
        self._shelves[fingerprint] = known
        return known
