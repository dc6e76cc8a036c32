"""Checkpoints: tensors as safetensors, the rest as JSON, and a manifest that tells a whole one from a damaged one."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from alloytune.record.atomic import new_folder

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """Named sets of tensors (`weights`, `optimizer`, `best`) and a JSON state."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint aside, sync it and rename it into place; raises SaveError and leaves nothing half."""
    with new_folder(folder) as aside:
        for name, tensors in checkpoint.tensors.items():
            save_file({key: value.contiguous() for key, value in tensors.items()}, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps(dict(checkpoint.state)), encoding="utf-8")
        manifest = {file.name: _digest(file) for file in sorted(aside.iterdir())}
        (aside / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read a checkpoint; None when it is absent or any file of it is missing, cut short or altered."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if any(_digest(folder / name) != digest for name, digest in manifest.items()):
            return None
    except (OSError, ValueError):
        return None
    # tensors are copied out of the file's buffer, whose alignment differs from what a fresh run allocates
    tensors = {
        Path(name).stem: {key: value.clone() for key, value in load_file(folder / name).items()}
        for name in manifest
        if name.endswith(".safetensors")
    }
    return Checkpoint(tensors, json.loads((folder / "state.json").read_text(encoding="utf-8")))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
