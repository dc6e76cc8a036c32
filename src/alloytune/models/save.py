"""Saving a tuned model so that plain transformers and PEFT load it, and proving that they do."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    the model that it sits on, instead. `base/` is also written beside an adapter whose base has moved. The model
    ends as it began, but for an adapter that is merged in now.
    """
    if state.attachment is None:
        _save_model(state, tokenizer, places.model, card)
        return {"model": True, "adapter": False, "base": False}
    mergeable = state.attachment.settings.mergeable
    needs_base = state.base_moved or not mergeable
    # from the run folder, wherever that is moved; "./" keeps it from being taken for the name of a model on a hub
    base = f"./{places.base.name}" if needs_base else places.source
    with _folder(tokenizer, places.adapter, card + _how_to_load(state, places, needs_base)) as folder:
        save_adapter(state.model, state.attached, state.head, base, folder)
    if needs_base:
        whole = state.snapshot(state.adapter_names)
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
    found = _outputs_when_reloaded(
        {
            "folders": {name: str(path) for name, path in folders.items()},
            "source": source,
            "inputs": dict(inputs),
            "config": dict(config),
        }
    )
    scale = float(np.abs(expected).max()) or 1.0
    differences = {name: float(np.abs(outputs - expected).max()) / scale for name, outputs in found.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise VerificationError(
                f"{folders[name]}: loaded again, its outputs differ by {difference:.1e} of the largest output "
                f"(allowed: {TOLERANCE:.0e}); do not use it, and report this with the run's resolved.json"
            )
    return differences


def _outputs_when_reloaded(request: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Run `reload.py` in a fresh process; give the outputs by folder."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "request.json", Path(scratch) / "answer.npz"
        asked.write_text(json.dumps(request), encoding="utf-8")
        script = Path(__file__).with_name("reload.py")
        done = subprocess.run(
            [sys.executable, "-P", str(script), str(asked), str(answer)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise VerificationError(f"what was saved does not load again ({last}); do not use it")
        return dict(np.load(answer))


def _save_model(state: ModelState, tokenizer: PreTrainedTokenizerBase, path: Path, card: str) -> None:
    with _folder(tokenizer, path, card) as folder:
        state.model.save_pretrained(str(folder))


@contextmanager
def _folder(tokenizer: PreTrainedTokenizerBase, path: Path, card: str) -> Iterator[Path]:
    """Give a new folder for weights, with the tokenizer and the card put beside them."""
    with new_folder(path) as folder:
        yield folder
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")


def _how_to_load(state: ModelState, places: Places, needs_base: bool) -> str:
    """Say in the adapter's card what it goes on, and how."""
    config = state.model.config
    on = f'"./{places.base.name}"' if needs_base else f'"{places.source}"'
    more = "" if needs_base else f", num_labels={config.num_labels}, ignore_mismatched_sizes=True"
    padding = config.get_text_config().pad_token_id
    more += "" if needs_base or padding is None else f", pad_token_id={padding}"
    known = "" if state.attached.settings.kind == "lora" else "import alloytune.models.bottleneck  # known to PEFT\n"
    return f"""
## Loading this adapter

From the folder that holds `{places.adapter.name}/`{f" and `{places.base.name}/`" if needs_base else ""}:

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
{known}
base = AutoModelForSequenceClassification.from_pretrained({on}{more})
model = PeftModel.from_pretrained(base, "./{places.adapter.name}")
```
"""
