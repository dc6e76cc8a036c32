"""Beside training: labels for new texts, and the time to the first update."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from meter import peak_bytes, reset_peak, warm_up

PIPELINE_BATCHES = (8, 16, 32, 64, 128)
NUM_TEXTS = 300
FASTEST_OF = 2


def predict_ours(run: Path, texts: list[str], precision: str) -> dict[str, Any]:
    """Label texts with a run of this project."""
    import alloytune

    tuned = alloytune.load(run, precision)
    return _timed({"": lambda: tuned.predict(texts)}, texts)


def predict_pipeline(run: Path, texts: list[str]) -> dict[str, Any]:
    """Label the same texts with the same model by transformers' pipeline, at every batch size; the best counts."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(run / "model"), top_k=None)
    return _timed(
        {f"batch {size}": lambda size=size: classify(texts, batch_size=size) for size in PIPELINE_BATCHES}, texts
    )


def _timed(ways: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    warm_up()
    reset_peak()
    taken: dict[str, float] = {}
    for _ in range(FASTEST_OF):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name] = min(taken.get(name, float("inf")), time.perf_counter() - began)
    best = min(taken, key=lambda name: taken[name])
    return {
        "rows_per_second": len(texts) / taken[best],
        "best": best,
        "seconds_by_way": taken,
        "peak_memory_bytes": peak_bytes(),
    }


def first_update(source: str, splits: Path) -> dict[str, Any]:
    """Start `alloytune train full` and give the seconds until the first line of its steps is written."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        command = [sys.executable, "-m", "alloytune", "train", "full", "--model", source, "--output", str(run)]
        command += ["--data", str(splits / "train.parquet"), "--set", "stages.full.rate=3e-4"]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ) as process:
            while process.poll() is None and not list(run.glob("stages/*/steps.jsonl")):
                time.sleep(0.02)
            seconds = time.perf_counter() - began
            if process.poll():
                raise RuntimeError(process.stderr.read().decode() if process.stderr else "")
            process.terminate()
    return {"seconds": seconds}
