"""GGUF files as a starting model: dequantised once, and kept as safetensors in a cache."""

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alloytune.errors import InputError, first_line
from alloytune.record.atomic import new_folder

SUFFIX = ".gguf"


def find_gguf(path: Path) -> Path | None:
    """Give the GGUF file that a path is, or that its folder holds in the place of a model; None where there is none.

    Raises InputError where a folder holds several, since each is a model of its own.
    """
    if path.is_file():
        return path if path.suffix.lower() == SUFFIX else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError("model", f"{str(path)!r} holds several GGUF files ({names})", "name one of them")
    return files[0] if files else None


def dequantise(file: Path) -> Path:
    """Give the folder with the model of a GGUF file as float32 safetensors, made where it is not there yet.

    Folders go by the hash of the file, so that a file of the same name with other weights is another model. Weights are
    float32 because products of a scale and a quantised number need more digits than half precision has.
    """
    if find_spec("gguf") is None:
        raise InputError("model", f"{str(file)!r} is a GGUF file", 'pip install "alloytune[gguf]" to read it')
    folder = cache_folder() / "gguf" / _hash(file)
    if folder.is_dir():
        return folder
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model, info = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # a damaged file, or an architecture that is not known, fails in many ways
        raise InputError(
            "model",
            f"the GGUF file {str(file)!r} cannot be read ({first_line(error)})",
            "get it anew, or give the model as a folder of safetensors",
        ) from error
    if lost := sorted(info["missing_keys"]):
        raise InputError(
            "model", f"the GGUF file {str(file)!r} lacks {len(lost)} weights (such as {lost[0]})", "get it anew"
        )
    _forget_quantisation(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    return folder


def cache_folder() -> Path:
    """Give the folder for what can be made again: $ALLOYTUNE_CACHE, else `alloytune` in the user's cache folder."""
    own = os.environ.get("ALLOYTUNE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alloytune"


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _forget_quantisation(model: Any) -> None:
    """Make a dequantised model a plain one: transformers refuses to save what bears the mark of GGUF."""
    for key in ("hf_quantizer", "quantization_method"):
        if hasattr(model, key):
            delattr(model, key)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
