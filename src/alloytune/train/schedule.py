"""Courses of the rate over a stage: functions from progress (0 to 1) to a multiplier."""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]

_AFTER_WARMUP: dict[str, Schedule] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def make_schedule(kind: str, warmup: float) -> Schedule:
    """Rise from 0 over the share `warmup`, then follow `kind`: constant, linear or cosine (both down to 0)."""
    course = _AFTER_WARMUP[kind]

    def multiplier(progress: float) -> float:
        progress = min(max(progress, 0.0), 1.0)
        if progress < warmup:
            return progress / warmup
        return course((progress - warmup) / (1.0 - warmup))

    return multiplier
