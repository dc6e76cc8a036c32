"""The machine that a run uses: its device and its precision, as one object."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from accelerate import PartialState

from alloytune.errors import InputError
from alloytune.record import memory

Precision = Literal["auto", "float32", "bfloat16"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h

# Tokens of a pass. On two cores, with multilingual-e5-small and reviews of up to 512 tokens, 32 in an update, it trains
# 1.6 times as fast as in whole updates and takes 3.7 GiB instead of 17.4, and scores 1.5 times as fast. Twice and half
# as many tokens are slower.
PASS_TOKENS, ACCELERATOR_PASS_TOKENS = 2048, 32_768

# The part of a pass that may be padding where nothing is trained. all-MiniLM-L6-v2, 300 sentences of 26 tokens, in rows
# a second: 350 in float32 with 64 tokens of padding, 320 with 128, 310 without a limit; in bfloat16 740, 770 and 780.
MOST_PADDED = 1 / 32


@dataclass(frozen=True)
class Machine:
    """A device, and the type in which matrix products are computed there. Weights stay float32."""

    device: torch.device
    precision: torch.dtype

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute what follows in this machine's precision."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            yield

    @property
    def pass_tokens(self) -> int:
        """Give how many tokens, with padding, go through the model at once."""
        return PASS_TOKENS if self.device.type == "cpu" else ACCELERATOR_PASS_TOKENS

    @property
    def pass_padding(self) -> int | None:
        """Give how much padding takes longer than another pass; None where tokens take too little time for that."""
        return int(self.pass_tokens * MOST_PADDED) if self.precision == torch.float32 else None

    def reset_peak(self) -> None:
        """Start measuring peak memory anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            memory.reset_peak()

    def peak_bytes(self) -> int:
        """Give the peak memory since then: of the device, or of the process where the device is the processor."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return memory.peak_bytes()

    def held_bytes(self) -> int:
        """Give the memory of now, by the same count as the peak."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else memory.resident_bytes()

    def exact(self) -> "Machine":
        """Give the same device with products in float32."""
        return replace(self, precision=torch.float32)


def find_machine(precision: Precision = "auto") -> Machine:
    """Find the device (Accelerate's choice) and the precision that it computes fast in."""
    state = PartialState()
    if state.num_processes > 1:
        raise InputError(
            "accelerate", f"{state.num_processes} processes were started", "start one process; it uses one device"
        )
    device = state.device
    if device.type == "cpu":
        _keep_freed_memory()
    if precision == "auto":
        precision = "bfloat16" if _has_fast_bfloat16(device) else "float32"
    return Machine(device, getattr(torch, precision))


def _keep_freed_memory() -> None:
    """Have glibc keep large freed blocks instead of giving them back: the next update's gradients fill them again.

    A new page costs a page fault and is cleared first. Other C libraries do without.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(_MMAP_THRESHOLD, 2**30)
        set_option(_TRIM_THRESHOLD, 2**30)


def _has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 products run in hardware; emulated ones are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
