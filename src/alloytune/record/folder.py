"""The folder that a run leaves: complete and readable without the program."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from alloytune.errors import InputError
from alloytune.record.atomic import put_back, save_errors, write_json, write_text


class StageFolder:
    """What one stage leaves: `steps.jsonl`, `scores.jsonl`, `result.json` once it has ended, `checkpoint/` if kept.

    `turns.jsonl` tells which weights moved from which update on. `measures/` holds the scores that it began with, if a
    selection or a rate asked for any; `rates.json` the rates that were searched for, with their curves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint"
        self.measures = path / "measures"

    @property
    def run(self) -> "RunFolder":
        """Give the folder of the run that the stage belongs to."""
        return RunFolder(self.path.parents[1])

    def result(self) -> dict[str, Any] | None:
        """Give how the stage ended; None while it has not."""
        file = self.path / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Note how the stage ended: from now on a resume passes over it."""
        self.write("result", result)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of the stage's JSON files, such as `rates`."""
        with save_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / f"{name}.json", dict(value))

    def has(self, name: str) -> bool:
        """Tell whether one of the stage's JSON files is there, such as `rates`."""
        return (self.path / f"{name}.json").exists()

    def progress_folders(self) -> list[Path]:
        """Give the checkpoints from within the stage, newest first."""
        return sorted(self.path.glob("progress-*"), reverse=True)

    def progress_folder(self, attempt: int, update: int) -> Path:
        """Give the place of a checkpoint from within the stage."""
        return self.path / f"progress-{attempt:02d}-{update:08d}"

    def tidy(self, num_kept: int = 0) -> None:
        """Remove what a kill left half written, and all but the newest checkpoints from within the stage.

        What a kill left aside while it was being replaced has its place again.
        A manifest goes first, so that a kill in between leaves no checkpoint that looks whole.
        """
        for old in self.path.glob(".*.old"):
            put_back(old)
        for outdated in self.progress_folders()[num_kept:]:
            (outdated / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(outdated)
        for leftover in self.path.glob(".*.partial"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a line to `steps.jsonl`, `scores.jsonl` or `turns.jsonl`."""
        with save_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(row)) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Read `steps.jsonl`, `scores.jsonl` or `turns.jsonl`; a last line cut short by a kill is left out."""
        return list(_whole_lines(self.path / f"{name}.jsonl"))

    def forget_after(self, attempt: int, update: int) -> None:
        """Drop the lines of updates that a resume carries out anew."""
        for name in ("steps", "scores", "turns"):
            file = self.path / f"{name}.jsonl"
            if file.exists():
                kept = [row for row in self.rows(name) if (row["attempt"], row["update"]) <= (attempt, update)]
                write_text(file, "".join(json.dumps(row) + "\n" for row in kept))


class RunFolder:
    """A run's folder and the places in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self.stages = path / "stages"
        self.model = path / "model"
        self.adapter = path / "adapter"
        self.base = path / "base"

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an earlier run; raises InputError if there is none."""
        if not (path / "resolved.json").exists():
            raise InputError("run", f"{str(path)!r} is no run folder", "give a folder that alloytune train has made")
        return cls(path)

    @property
    def is_scored(self) -> bool:
        """Tell whether the model has been scored as it came, which is the first that a run does."""
        return (self.stages / "start.json").exists()

    @property
    def is_finished(self) -> bool:
        """Tell whether the run is complete."""
        return (self.path / "results.json").exists()

    def stage(self, number: int, name: str) -> StageFolder:
        """Give the folder of a stage; `number` counts from 0, the folder's name from 01."""
        return StageFolder(self.stages / f"{number + 1:02d}-{name}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process train the run meanwhile; raises InputError where one does."""
        with (self.path / "recipe.yaml").open("rb") as file:  # which is never written anew
            try:
                flock(file, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                what = f"another process is training {str(self.path)!r}"
                raise InputError("run", what, "wait until it has ended, or stop it") from None
            except OSError:  # a file system without locks
                pass
            yield

    def read(self, name: str) -> dict[str, Any]:
        """Read one of the run's JSON files, such as `results.json`."""
        file = self.path / name
        if not file.exists():
            raise InputError(
                "run", f"{str(self.path)!r} has no {name} yet", f"finish it: alloytune train --resume {self.path}"
            )
        try:
            value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(str(file), f"it is damaged ({error})", "put it back, or start the run anew") from None
        return value

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of the run's JSON files."""
        write_json(self.path / name, dict(value))


def default_output(source: str, now: datetime) -> Path:
    """Give a run folder's name that is still free, such as runs/tweets-20261123-154207."""
    stem = Path(source).stem or "run"
    path = Path("runs") / f"{stem}-{now:%Y%m%d-%H%M%S}"
    number = 2
    while path.exists():
        path = Path("runs") / f"{stem}-{now:%Y%m%d-%H%M%S}-{number}"
        number += 1
    return path


def _whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
