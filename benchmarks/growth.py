"""How do time and memory grow with rows, with the length of texts and with layers?

    python benchmarks/growth.py run --data DIR [--most 1000000]    # cells that are done are passed over
    python benchmarks/growth.py report                             # prints the section of docs/benchmarks.md

Rows are made from the real ones of `sst2` in DIR: their words, shuffled, cut or repeated to a length. Data are read,
cleaned, split and tokenized by the recipe `full`, in a process of its own for each size. Lengths and layers are those
of a BERT as wide as all-MiniLM-L6-v2 with random weights; a few updates of full training are timed.
`benchmarks/speed/run.py report` writes the page.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from quality import HERE, MODEL, machine

CELLS = HERE / "results" / "growth"
ROWS = (1_000, 10_000, 100_000, 1_000_000)
LENGTHS = (16, 64, 128, 256, 512)
LAYERS = (2, 4, 6, 12)
TOKENS_AT_ONCE = 4096  # of a batch, the same for every length
UPDATES = 6  # after two to warm up
LIMIT = 4 * 2**30  # bytes that a million rows may take


def main() -> None:
    """Measure, or print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--most", type=int, default=ROWS[-1])
    commands.add_parser("report")
    one = commands.add_parser("one")  # what `run` starts
    one.add_argument("kind", choices=["rows", "model"])
    one.add_argument("sizes", nargs="+")
    options = parser.parse_args()
    if options.command == "report":
        print("\n".join(section()))
    elif options.command == "one":
        print(
            json.dumps(
                measure_rows(Path(options.sizes[0]))
                if options.kind == "rows"
                else measure_model(*map(int, options.sizes))
            )
        )
    else:
        measure_all(options.data, options.most)


def measure_all(data: Path, most: int) -> None:
    """Measure every size that has no cell yet."""
    CELLS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for rows in (rows for rows in ROWS if rows <= most):
            table = Path(scratch) / f"{rows}.csv"
            if not (CELLS / f"rows-{rows}.json").exists():
                make_table(data / "sst2" / "train.csv", rows, table)
                cell(f"rows-{rows}", "rows", str(table))
    for length in LENGTHS:
        cell(f"length-{length}", "model", "6", str(length))
    for layers in LAYERS:
        cell(f"layers-{layers}", "model", str(layers), "64")


def cell(name: str, kind: str, *sizes: str) -> None:
    """Measure one size in a process of its own, if it has not been measured."""
    file = CELLS / f"{name}.json"
    if file.exists():
        return
    done = subprocess.run([sys.executable, __file__, "one", kind, *sizes], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1]) | {"machine": machine()}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(name, found, flush=True)


def make_table(source: Path, rows: int, output: Path) -> None:
    """Make rows of the words of two real rows each, shuffled and cut to the length of one."""
    draw = random.Random(rows)
    with source.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"].split() for row in csv.DictReader(stream)]
    with output.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            one, other = draw.choice(texts), draw.choice(texts)
            words = draw.sample(one + other, (len(one) + len(other)) // 2 + 1)
            writer.writerow([" ".join(words), draw.choice(["negative", "positive"])])


def measure_rows(table: Path) -> dict[str, Any]:
    """Read, clean, split, write and tokenize a table; `peak_bytes` is the whole process's, its imports included."""
    from alloytune.build.data import build_data_settings
    from alloytune.data.prepare import prepare
    from alloytune.data.store import write_splits
    from alloytune.learning import encode_splits
    from alloytune.models.load import load_tokenizer, quiet
    from alloytune.models.source import locate
    from alloytune.recipe.read import read_recipe
    from alloytune.record.memory import peak_bytes
    from alloytune.tasks.task import find_task
    from alloytune.tasks.tokenized import count_tokens

    quiet()
    recipe = read_recipe("full", (), {"model": MODEL, "data": {"train": str(table)}}).recipe
    before, began = peak_bytes(), time.perf_counter()
    dataset = prepare(build_data_settings(recipe))
    prepared = time.perf_counter()
    peak_of_data = peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        write_splits(dataset, Path(folder))
    task = find_task(recipe.task_name).learn(recipe.task_settings, dataset.train)
    written = time.perf_counter()
    learning = encode_splits(task, dataset, load_tokenizer(locate(MODEL)), 512, "data")
    return {
        "read": sum(dataset.audit.read.values()),
        "kept": sum(dataset.audit.kept.values()),
        "tokens": sum(int(count_tokens(examples).sum()) for examples in learning.examples.values()),
        "seconds_of_data": prepared - began,
        "seconds_of_tokens": time.perf_counter() - written,
        "bytes_of_imports": before,
        "peak_bytes_of_data": peak_of_data,
        "peak_bytes": peak_bytes(),
    }


def measure_model(layers: int, length: int) -> dict[str, Any]:
    """Time updates of full training on texts of one length."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from alloytune.machine import find_machine
    from alloytune.models.weights import named_weights
    from alloytune.tasks.classification import Classification
    from alloytune.tasks.task import Batch
    from alloytune.train.clip import make_clip
    from alloytune.train.loop import training_steps
    from alloytune.train.moving import Group, Moving, make_optimizer
    from alloytune.train.turns import Turns, steady

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536, num_labels=2
    )
    found = find_machine()
    model = BertForSequenceClassification(config).to(found.device)
    weights = named_weights(model)
    moving = Moving((Group(tuple(weights), 1e-5, 0.0),))
    optimizer = make_optimizer(moving, weights)
    turns = Turns(steady(moving.selected), moving.names, model, optimizer)
    size = TOKENS_AT_ONCE // length
    ids = torch.randint(1000, 30_000, (size, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch(inputs, torch.randint(0, 2, (size,)), tuple(map(str, range(size))), ids.numel(), size)
    steps = training_steps(
        model,
        optimizer,
        iter([[batch]] * (UPDATES + 2)),
        Classification(("no", "yes")).summed_loss,
        found,
        still=lambda number: turns.at(number, 0.5),
        multiplier=lambda number: 1.0,
        clip=make_clip(None),
        seed=0,
    )
    taken = []
    found.reset_peak()
    for _ in range(UPDATES + 2):
        began = time.perf_counter()
        next(steps)
        taken.append(time.perf_counter() - began)
    return {"microseconds_per_token": median(taken[2:]) / ids.numel() * 1e6, "peak_bytes": found.peak_bytes()}


def section() -> Iterator[str]:
    """Give the section of the page."""
    yield from SECTION
    for kind, sizes, table in (
        ("rows", ROWS, row_line),
        ("length", LENGTHS, model_line),
        ("layers", LAYERS, model_line),
    ):
        yield from HEADS[kind]
        for size in sizes:
            file = CELLS / f"{kind}-{size}.json"
            yield (
                table(size, json.loads(file.read_text(encoding="utf-8")))
                if file.exists()
                else f"| {size:,} | not run |"
            )
        yield ""


def row_line(rows: int, found: dict[str, Any]) -> str:
    """Give the line of one number of rows."""
    figures = [
        f"{found['kept']:,}",
        f"{found['seconds_of_data']:.1f}",
        f"{found['seconds_of_data'] / rows * 1e6:.0f}",
        f"{found['seconds_of_tokens']:.1f}",
        f"{found['seconds_of_tokens'] / found['tokens'] * 1e6:.1f}",
        f"{found['peak_bytes'] / 2**30:.2f}",
    ]
    verdict = "" if rows < ROWS[-1] else "reached" if found["peak_bytes"] <= LIMIT else "**not reached**"
    return f"| {rows:,} | {' | '.join(figures)} | {verdict} |"


def model_line(size: int, found: dict[str, Any]) -> str:
    """Give the line of one length or number of layers."""
    return f"| {size} | {found['microseconds_per_token']:.0f} | {found['peak_bytes'] / 2**20:,.0f} |"


SECTION = """
## Growth

Written from `benchmarks/growth.py`. Rows are made of the words of real ones, 26 tokens each; they are read, cleaned,
split and tokenized in one process, whose peak memory holds the imports as well (0.4 GiB). A million rows are to take
no more than 4 GiB. The seconds of these rows were taken with other work on the same cores and compare nothing.

Lengths and layers: full training of a BERT 384 wide with random weights, 4,096 tokens at a time, so that all but
attention should take as long for each token at every length, and as much more as there are layers.
""".strip().splitlines()
HEADS = {
    "rows": [
        "",
        "| rows | kept | read to split, s | µs a row | tokenizing, s | µs a token | peak memory, GiB | within 4 GiB |",
        "|---|---|---|---|---|---|---|---|",
    ],
    "length": ["| tokens in a text | µs a token | peak memory, MiB |", "|---|---|---|"],
    "layers": ["| layers | µs a token | peak memory, MiB |", "|---|---|---|"],
}


if __name__ == "__main__":
    main()
