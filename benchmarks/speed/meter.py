"""Time and memory of this process or its accelerator; nothing here needs this project to be installed."""

import os
import time
from pathlib import Path

import torch

READ = time.time()
MINILM_SHAPE = (832, 384, 1536)  # of the largest products in an update of all-MiniLM-L6-v2 on 32 rows of sst2


def seconds_since_start() -> float:
    """Give the seconds since the benchmark started this process, or since this file was read."""
    return time.time() - float(os.environ.get("SPEED_STARTED", READ))


def reset_peak() -> None:
    """Start measuring the peak anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Give the peak since then: of the accelerator's memory, or of the process's where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def held_bytes() -> int:
    """Give what is held now: of the accelerator's memory, or of the process's."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def gemm_peak(precision: torch.dtype, size: int = 2048, times: int = 24) -> float:
    """Give the operations per second of square matrix products."""
    size = 8192 if torch.cuda.is_available() else size
    return gemm_rate(precision, (size, size, size), times)


def gemm_rate(precision: torch.dtype, shape: tuple[int, int, int], times: int = 24) -> float:
    """Give the operations per second of products [m, k] @ [k, n]: the upper quartile of as many, after two to warm up.

    `shape` is m, k, n.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, inner, columns = shape
    one = torch.randn(rows, inner, device=device, dtype=precision)
    other = torch.randn(inner, columns, device=device, dtype=precision)
    taken = []
    for _ in range(times + 2):
        began = time.perf_counter()
        one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 2 * rows * inner * columns / sorted(taken[2:])[times // 4]


def warm_up() -> None:
    """Let kernels and thread pools come up: what the first product of a process pays for all later ones."""
    gemm_peak(torch.bfloat16, size=256, times=4)
    gemm_peak(torch.float32, size=256, times=4)
