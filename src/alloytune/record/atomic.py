"""Writing that leaves either the whole new thing or the old one: aside, synced, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alloytune.errors import InputError, SaveError

_OLD = ".old"


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a file in one step; raises SaveError and leaves the old file whole if that fails."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step; raises SaveError and leaves the old file whole if that fails."""
    aside = path.with_name(f".{path.name}.partial")
    with save_errors(path):
        try:
            aside.write_text(text, encoding="utf-8")
            _sync(aside)
            aside.replace(path)
            _sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replaces: bool = True) -> Iterator[Path]:
    """Give a folder to fill; it takes the place of `path` when the block ends, and vanishes when it fails.

    The folder that stood there before is untouched until the new one is complete and synced. Unless `replaces`, it
    stays: InputError where something stands there by then, made by another process maybe. What a kill left aside is
    put back first.
    """
    whole = path.resolve()  # "." has no name of its own
    aside = whole.with_name(f".{whole.name}.partial" if replaces else f".{whole.name}.{os.getpid()}.partial")
    old = whole.with_name(f".{whole.name}{_OLD}")
    with save_errors(path):
        put_back(old)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            yield aside
            for file in sorted(aside.rglob("*")):
                _sync(file)
            _sync(aside)
            if not replaces:
                require_free(path)
            elif whole.exists():
                whole.rename(old)
            aside.rename(whole)  # fails where a folder that is not empty has come in between
            _sync(whole.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def put_back(old: Path) -> None:
    """Give a folder that `new_folder` had moved aside its place again if a kill left that empty, else remove it."""
    path = old.with_name(old.name.removeprefix(".").removesuffix(_OLD))
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def require_free(path: Path) -> None:
    """Raise InputError if a run folder cannot be made here without touching what is there."""
    if why := why_taken(path):
        raise InputError(
            "output",
            why,
            f"choose another --output, or go on with a run that stands in it: alloytune train --resume {path}",
        )


def why_taken(path: Path) -> str | None:
    """Say why a new folder cannot be made here without touching what is there; None where it can."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        return f"{str(path)!r} exists and is not empty"
    if path.resolve() == Path.cwd():  # whose place another folder would take, so that no relative path holds any more
        return f"{str(path)!r} is the working directory"
    return None


@contextmanager
def save_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into a SaveError that names the place and what to do."""
    try:
        yield
    except Exception as error:
        # safetensors wraps the system's error, so a full disk is known by its text as well
        if not isinstance(error, OSError) and "os error" not in str(error).lower():
            raise
        raise SaveError(
            f"{path}: cannot be saved ({error}); what was saved before is whole: make room, then go on "
            "with alloytune train --resume RUN, or start anew where no run was begun"
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
