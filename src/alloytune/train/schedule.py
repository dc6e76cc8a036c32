"""Courses of the rate over a stage: functions from progress (0 to 1) to a multiplier."""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]

LEAST = 1 / 32  # where `slanted` begins and ends
LAST = 0.2  # the share of the course in which `stable-then-decay` falls

_AFTER_WARMUP: dict[str, Schedule] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "slanted": lambda progress: 1.0 - progress,
    "stable-then-decay": lambda progress: 1.0 - math.sqrt(max(0.0, (progress - 1.0 + LAST) / LAST)),
}


def make_schedule(kind: str, warmup: float) -> Schedule:
    """Rise from 0 over the share `warmup`, then follow `kind`.

    `constant` stays; `linear` and `cosine` fall to 0; `slanted` rises from 1/32 and falls back to it in straight lines
    (Howard and Ruder 2018); `stable-then-decay` stays for four fifths and falls to 0 as 1 minus the root of the time
    (Hägele et al. 2024).
    """
    course = _AFTER_WARMUP[kind]
    least = LEAST if kind == "slanted" else 0.0

    def multiplier(progress: float) -> float:
        progress = min(max(progress, 0.0), 1.0)
        risen = progress / warmup if progress < warmup else course((progress - warmup) / (1.0 - warmup))
        return least + (1.0 - least) * risen

    return multiplier
