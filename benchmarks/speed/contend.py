"""One contender in one case, as a process of its own; `run.py` starts it.

python benchmarks/speed/contend.py CASE CONTENDER MODEL SPLITS OUTPUT
"""

import json
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cases import CASES

PACKAGES = ("alloytune", "torch", "transformers", "peft", "accelerate", "adapters")


def main(case: str, contender: str, model: str, splits: Path, output: Path) -> None:
    """Measure, and write what was found with the versions that it was found with."""
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(case, contender, model, splits, Path(scratch))
    cell = {"case": case, "contender": contender, **found, "versions": versions()}
    output.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")


def measure(name: str, contender: str, model: str, splits: Path, scratch: Path) -> dict[str, Any]:
    """Carry out a contender's part."""
    if name == "peak":
        import torch
        from meter import MINILM_SHAPE, gemm_peak, gemm_rate

        peaks = {"float32": gemm_peak(torch.float32), "bfloat16": gemm_peak(torch.bfloat16)}
        return {**peaks, "bfloat16_minilm": gemm_rate(torch.bfloat16, MINILM_SHAPE, times=200)}
    if name == "first-update":
        from usage import first_update

        return first_update(model, splits)
    if name == "predict":
        import polars as pl
        from usage import NUM_TEXTS, predict_ours, predict_pipeline

        texts = pl.read_parquet(splits / "train.parquet")["text"].to_list()
        texts = (texts * (NUM_TEXTS // len(texts) + 1))[:NUM_TEXTS]
        if contender == "pipeline":
            return predict_pipeline(splits / "run", texts)
        return predict_ours(splits / "run", texts, "auto" if contender == "fast" else "float32")
    case = CASES[name]
    if contender in ("alloytune", "count"):
        import ours

        return (ours.count if contender == "count" else ours.fine_tune)(case, model, splits, scratch)
    import peers

    return peers.fine_tune(case, model, splits, scratch, tuned=contender != "defaults", hub=contender == "adapterhub")


def versions() -> dict[str, str]:
    """Give the versions of what is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
