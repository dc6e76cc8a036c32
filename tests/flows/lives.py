"""A run that is killed and goes on, in processes that a server forks: torch is loaded once, not for each life."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from alloytune import run
from alloytune.models import verify
from alloytune.models.load import quiet
from alloytune.recipe.read import read_recipe
from alloytune.watch import Watcher
from forking import CONTEXT, forked_process


def live(recipe: str, output: str) -> None:
    """Start the run, or go on with it."""
    torch.set_num_threads(1)
    quiet()
    verify.fresh_process = forked_process
    os.chdir(Path(recipe).parent)
    if (Path(output) / "resolved.json").exists():
        run.resume(Path(output), Watcher())
    else:
        run.start(read_recipe(recipe), Path(output), Watcher())


def life(
    recipe: Path, output: Path, seconds: float | None = None, until: Callable[[], bool] | None = None
) -> int | None:
    """Let a run live for some seconds, or until something holds, then kill it; give its exit code (-9 when killed)."""
    process = CONTEXT.Process(target=live, args=(str(recipe), str(output)))
    process.start()
    if until is None:
        process.join(seconds)
    else:
        while process.is_alive() and not until():
            time.sleep(0.01)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode
