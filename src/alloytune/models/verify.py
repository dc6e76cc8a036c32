"""Proving that what was saved loads in plain transformers and PEFT, in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alloytune.errors import VerificationError

TOLERANCE = 1e-3  # of the largest output; float32 rounding over a few dozen layers stays below


def difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Give the largest difference between outputs, relative to the largest output that was expected."""
    return float(np.abs(outputs - expected).max()) / (float(np.abs(expected).max()) or 1.0)


Loader = Callable[[Path, Path], None]  # what is asked, where the answer goes


@contextmanager
def fresh_process() -> Iterator[Loader]:
    """Start a process that loads what was saved: it imports transformers at once, beside what is done meanwhile.

    The loader raises VerificationError with the last line of the complaint where it fails. It can be used once.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("reload.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the run, which goes on until it has saved
    )
    with process:
        try:
            yield partial(_load, process)
        finally:
            process.kill()


def _load(process: "subprocess.Popen[str]", asked: Path, answer: Path) -> None:
    _, complaint = process.communicate(json.dumps([str(asked), str(answer)]))
    if process.returncode != 0:
        last = (complaint.strip().splitlines() or ["no message"])[-1]
        raise VerificationError(f"what was saved does not load again ({last}); do not use it")


def verify_saved(
    load: Loader,
    folders: Mapping[str, Path],
    adapters: Sequence[str],
    source: str,
    inputs: Mapping[str, Any],
    expected: np.ndarray,
    config: Mapping[str, Any],
    auto_class: str = "AutoModelForSequenceClassification",
) -> dict[str, float]:
    """Have each saved folder loaded and compare its outputs with `expected`, [rows, ...].

    `folders` holds `model`, or `adapter` (with `base` where written; else it goes on `source`), or both; `adapters`
    are the names of those that were attached, in order; `auto_class` is transformers' class to load them with.
    Gives the largest difference by folder, relative to the largest output. Raises VerificationError above TOLERANCE.
    """
    found = _outputs_when_reloaded(
        load,
        {
            "folders": {name: str(path) for name, path in folders.items()},
            "auto_class": auto_class,
            "adapters": list(adapters),
            "source": source,
            "inputs": dict(inputs),
            "config": dict(config),
        },
    )
    differences = {name: difference(outputs, expected) for name, outputs in found.items()}
    for name, found_difference in differences.items():
        if not found_difference <= TOLERANCE:
            raise VerificationError(
                f"{folders[name]}: loaded again, its outputs differ by {found_difference:.1e} of the largest output "
                f"(allowed: {TOLERANCE:.0e}); do not use it, and report this with the run's resolved.json"
            )
    return differences


def _outputs_when_reloaded(load: Loader, request: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Have the folders loaded; give the outputs by folder."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "request.json", Path(scratch) / "answer.npz"
        asked.write_text(json.dumps(request), encoding="utf-8")
        load(asked, answer)
        return dict(np.load(answer))
