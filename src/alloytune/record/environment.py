"""What a run ran with: versions, machine, command, hashes of what it read."""

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alloytune import __version__

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "polars")


def describe(files: Mapping[str, Path], **more: Any) -> dict[str, Any]:
    """Give what to write into `environment.json`; `files` are hashed by name."""
    return {
        "command": sys.argv,
        "versions": {"alloytune": __version__, "python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "files": {name: {"path": str(file), "sha256": _sha256(file)} for name, file in files.items()},
        **more,
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
