"""Processes forked from a server that has loaded torch, transformers and PEFT once: fresh, and quickly there."""

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from alloytune.errors import VerificationError
from alloytune.models import reload
from alloytune.models.verify import Loader

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["alloytune.run"])  # with torch and all; the tests are not on the server's path


@contextmanager
def forked_process() -> Iterator[Loader]:
    """Stand in for `alloytune.models.verify.fresh_process`: 4 seconds of imports less for every whole run."""
    yield _load


def _load(asked: Path, answer: Path) -> None:
    forked = multiprocessing.parent_process() is not None  # such a process would start a server of its own
    context = multiprocessing.get_context("fork") if forked else CONTEXT
    process = context.Process(target=_reload, args=(str(asked), str(answer)))
    process.start()
    process.join()
    if process.exitcode != 0:
        complaint = answer.with_suffix(".txt").read_text()
        raise VerificationError(f"what was saved does not load again ({complaint}); do not use it")


def _reload(asked: str, answer: str) -> None:
    torch.set_num_threads(1)
    try:
        reload.main(asked, answer)
    except SystemExit as complaint:
        Path(answer).with_suffix(".txt").write_text(str(complaint))
        sys.exit(1)
