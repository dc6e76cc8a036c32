"""At which rate does each method reach what? The shipped recipes start from what this measures.

    python benchmarks/rates.py run --data DIR --name NAME [--workers N]    # cells that are done are passed over
    python benchmarks/rates.py report                                     # writes docs/rates.md from all cells

DIR is as in `quality.py`. Each cell is the stage of a shipped recipe at one rate; what counts is
the score on validation, since the test rows are for the end.
"""

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from quality import HERE, MODEL, machine, read_cells

CELLS = HERE / "results" / "rates"
PAGE = HERE.parent / "docs" / "rates.md"
SETS = ("trec", "banking77")
ROWS = {"trec": 1000, "banking77": 2000}
METHODS = {
    "full": (2e-4, 3e-4, 5e-4),
    "last-layers": (5e-4, 1e-3, 2e-3),
    "lora": (1e-3, 2e-3),
    "bottleneck": (1e-3, 2e-3),
    "head": (5e-3, 2e-2),
}


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--name", required=True, help="names the set of cells, such as cpu")
    run.add_argument("--seeds", nargs="+", type=int, default=(0,))
    run.add_argument("--workers", type=int, default=1, help="runs at a time; seconds are comparable with one only")
    run.add_argument("--output", type=Path, default=CELLS)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "report":
        PAGE.write_text(page(read_cells(CELLS)), encoding="utf-8")
        return
    output = options.output / options.name
    output.mkdir(parents=True, exist_ok=True)
    cells = [
        (output / f"{name}-{method}-{rate:g}-{seed}.json", options.data / name, method, rate, seed)
        for seed in options.seeds
        for method, rates in METHODS.items()
        for rate in rates
        for name in SETS
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(run_cell, *cell) for cell in cells if not cell[0].exists()]:
            print(done.result(), flush=True)


def run_cell(file: Path, data: Path, method: str, rate: float, seed: int) -> str:
    """Train one method at one rate and write its cell."""
    import torch

    from alloytune import build
    from alloytune.data.prepare import prepare
    from alloytune.models.load import quiet
    from alloytune.recipe.read import read_recipe
    from alloytune.record.folder import RunFolder
    from alloytune.stages import StageOfRun, validate
    from alloytune.watch import Watcher

    quiet()
    given = {"train": str(data / "train.csv"), "test": str(data / "test.csv"), "rows": ROWS[data.name]}
    overrides = (f"stages.0.rate={rate}",)
    recipe = read_recipe(method, overrides, {"model": MODEL, "data": given, "seed": seed}).recipe
    session = build.build_session(recipe, prepare(build.build_data_settings(recipe)))
    with tempfile.TemporaryDirectory() as scratch:
        stage = StageOfRun(RunFolder(Path(scratch)), session, 0, Watcher(), stop_requested=lambda: False)
        accuracy = stage.carry_out(validate(session)).values["accuracy"]
    rows = {split: len(examples) for split, examples in session.examples.items()}
    cell = {"set": data.name, "method": method, "rate": rate, "seed": seed, "accuracy": accuracy, "rows": rows}
    on = {"machine": machine(), "threads": torch.get_num_threads()}
    file.write_text(json.dumps(cell | on, indent=1) + "\n", encoding="utf-8")
    return f"{data.name:>10} {method:<12} {rate:g}: validation {accuracy:.4f}"


def page(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Write the page of rates."""
    lines = [
        "# Rates",
        "",
        "Written by `benchmarks/rates.py report`; the script's docstring says how to run it again. all-MiniLM-L6-v2,",
        "five epochs, batches of 32, linear schedule; 1,000 rows of `trec` and 2,000 of `banking77`, a tenth",
        "of them for validation. Accuracy on validation, mean over the seeds; the best of a",
        "column in bold. The last column is the mean over the data sets of the loss against each set's best.",
        "",
    ]
    for name, cells in groups.items():
        lines += [f"## {name}", "", f"On {cells[0]['machine']}.", ""]
        for method in METHODS:
            if of_method := [cell for cell in cells if cell["method"] == method]:
                lines += table(method, of_method)
    return "\n".join(lines)


def table(method: str, cells: list[dict[str, Any]]) -> list[str]:
    """Write the table of one method: rates down, data sets across; a rate that was not run on a set leaves a gap."""
    found: dict[tuple[float, str], list[float]] = {}
    for cell in cells:
        found.setdefault((cell["rate"], cell["set"]), []).append(cell["accuracy"])
    means = {place: statistics.mean(accuracies) for place, accuracies in found.items()}
    best = {name: max((mean for (_, its), mean in means.items() if its == name), default=0.0) for name in SETS}
    lines = [f"| `{method}` | " + " | ".join(SETS) + " | loss |", "|---|" + "---|" * (len(SETS) + 1)]
    for rate in sorted({rate for rate, _ in means}):
        of_rate = {name: means[rate, name] for name in SETS if (rate, name) in means}
        shown = [shown_mean(of_rate.get(name), best[name]) for name in SETS]
        losses = [best[name] - mean for name, mean in of_rate.items()]
        loss = f"{statistics.mean(losses):.4f}" if len(losses) == len(SETS) else ""
        lines.append(f"| {rate:g} | " + " | ".join(shown) + f" | {loss} |")
    return [*lines, ""]


def shown_mean(mean: float | None, best: float) -> str:
    """Write a mean, the best in bold."""
    if mean is None:
        return ""
    return f"**{mean:.4f}**" if mean == best else f"{mean:.4f}"


if __name__ == "__main__":
    main()
