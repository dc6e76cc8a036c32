"""Saving a tuned model so that plain transformers and PEFT load it, and proving that they do."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alloytune.errors import VerificationError
from alloytune.models.adapters import save_adapter
from alloytune.models.state import ModelState
from alloytune.record.atomic import new_folder

TOLERANCE = 1e-3  # of the largest output; float32 rounding over a few dozen layers stays below


@dataclass(frozen=True)
class Places:
    """Where the parts go. `source` is the pretrained model that an adapter alone belongs on."""

    source: str
    model: Path
    adapter: Path
    base: Path


def save_tuned(state: ModelState, tokenizer: PreTrainedTokenizerBase, places: Places, card: str) -> dict[str, bool]:
    """Save the model, and the adapter alone where one is attached; give which folders were written.

    `model/` holds everything in one (the adapter merged). An adapter that cannot be merged is saved with `base/`,
    the model that it sits on, instead. `base/` is also written beside an adapter whose base has moved.
    """
    attachment = state.attachment
    if attachment is None:
        _save_model(state, tokenizer, places.model, card)
        return {"model": True, "adapter": False, "base": False}
    mergeable = attachment.settings.mergeable
    needs_base = state.base_moved or not mergeable
    with new_folder(places.adapter) as folder:
        base = str(places.base.resolve()) if needs_base else places.source
        save_adapter(state.model, state.attached, state.head, base, folder)
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")
    whole = state.snapshot(state.touched)
    if needs_base:
        state.take_off()
        _save_model(state, tokenizer, places.base, card)
        state.restore(whole)
    if mergeable:
        state.merge()
        _save_model(state, tokenizer, places.model, card)
    return {"model": mergeable, "adapter": True, "base": needs_base}


def verify_saved(
    folders: Mapping[str, Path], source: str, inputs: Mapping[str, Any], expected: np.ndarray, config: Mapping[str, Any]
) -> dict[str, float]:
    """Load each saved folder in a fresh process and compare its outputs with `expected`, [rows, ...].

    `folders` holds `model`, or `adapter` (with `base` where written; else it goes on `source`), or both.
    Gives the largest difference by folder, relative to the largest output. Raises VerificationError above TOLERANCE.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request = Path(scratch) / "request.json"
        answer = Path(scratch) / "answer.npz"
        request.write_text(
            json.dumps(
                {
                    "folders": {name: str(path) for name, path in folders.items()},
                    "source": source,
                    "inputs": dict(inputs),
                    "config": dict(config),
                }
            ),
            encoding="utf-8",
        )
        script = Path(__file__).with_name("reload.py")
        done = subprocess.run(
            [sys.executable, str(script), str(request), str(answer)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise VerificationError(f"{next(iter(folders.values()))}: the saved model does not load again ({last})")
        found = dict(np.load(answer))
    scale = float(np.abs(expected).max()) or 1.0
    differences = {name: float(np.abs(outputs - expected).max()) / scale for name, outputs in found.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise VerificationError(
                f"{folders[name]}: loaded again, its outputs differ by {difference:.1e} of the largest output "
                f"(allowed: {TOLERANCE:.0e}); do not use it, and report this with the run's resolved.json"
            )
    return differences


def _save_model(state: ModelState, tokenizer: PreTrainedTokenizerBase, path: Path, card: str) -> None:
    with new_folder(path) as folder:
        state.model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")
