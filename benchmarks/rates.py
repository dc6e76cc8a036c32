"""Does `rate: auto` find a rate as good as the best of a grid of nine?

    python benchmarks/rates.py run --data DIR --multilingual MODEL --name NAME [--workers N]
    python benchmarks/rates.py report        # writes docs/rates.md from all cells

DIR holds `trec`, `banking77` (each with train.csv and test.csv) and `zh_reviews` (reviews.csv); columns `text` and
`label`. MODEL is a folder with multilingual-e5-small, for `zh_reviews`; the others use all-MiniLM-L6-v2. Each cell is
the one stage of a shipped recipe at one rate, scored on the same test rows; cells that are done are passed over.
"""

import argparse
import json
import math
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

from quality import HERE, MODEL, machine, read_cells

CELLS = HERE / "results" / "rates"
PAGE = HERE.parent / "docs" / "rates.md"
ROWS = {"trec": 1000, "banking77": 3000, "zh_reviews": 2000}
NUM_TEST = 2000  # rows of zh_reviews, which brings no test split
AUTO = "auto"
GRID = {
    "full": (2e-5, 5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3),
    "last-layers": (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2),
    "lora": (1e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 3e-2),
}


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--multilingual", required=True, help="folder with multilingual-e5-small")
    run.add_argument("--name", required=True, help="names the set of cells, such as cpu")
    run.add_argument("--sets", nargs="+", default=list(ROWS))
    run.add_argument("--rates", nargs="+", default=("grid", AUTO), help="grid, auto, or rates of the grid")
    run.add_argument("--seeds", nargs="+", type=int, default=[0])
    run.add_argument("--workers", type=int, default=1)
    run.add_argument("--output", type=Path, default=CELLS)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "report":
        PAGE.write_text(page(read_cells(CELLS)), encoding="utf-8")
        return
    output = options.output / options.name
    output.mkdir(parents=True, exist_ok=True)
    models = {"trec": MODEL, "banking77": MODEL, "zh_reviews": options.multilingual}
    cells = [
        (output / cell_name(name, method, rate, seed), options.data / name, models[name], method, str(rate), seed)
        for seed in options.seeds
        for name in options.sets
        for place in from_the_middle()
        for method, rates in GRID.items()
        for rate in [AUTO if place is None else rates[place]]
        if str(rate) in options.rates or (place is not None and "grid" in options.rates)
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(run_cell, *cell) for cell in cells if not cell[0].exists()]:
            print(done.result(), flush=True)


def cell_name(name: str, method: str, rate: float | str, seed: int) -> str:
    """Name the file of a cell."""
    return f"{name}-{method}-{rate}{f'-seed{seed}' if seed else ''}.json"


def from_the_middle() -> list[int | None]:
    """Give the places in a grid from its middle outwards, `auto` (None) first: a run cut short has seen the peak."""
    num_rates = len(GRID["full"])
    return [None, *sorted(range(num_rates), key=lambda n: abs(n - num_rates // 2))]


def run_cell(file: Path, data: Path, model: str, method: str, rate: str, seed: int) -> str:
    """Train one method at one rate and write its cell."""
    import alloytune
    from alloytune.models.load import quiet

    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        train, test = splits(data, Path(scratch))
        tuned = alloytune.tune(
            train,
            model,
            method,
            test=str(test),
            rows=ROWS[data.name],
            output=Path(scratch) / "run",
            seed=seed,
            overrides=(f"stages.0.rate={rate}",),
        )
        (folder,) = (tuned.folder.path / "stages").glob("01-*")
        sweeps = json.loads((folder / "rates.json").read_text(encoding="utf-8")) if rate == AUTO else {}
    (stage,) = tuned.results["stages"]
    cell = {
        "set": data.name,
        "method": method,
        "rate": rate,
        "seed": seed,
        "rates": stage["rates"],
        "sweeps": sweeps,
        "accuracy": tuned.scores["accuracy"],
        "rows": tuned.results["rows"],
        "machine": machine(),
    }
    file.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
    return f"{data.name:>10} {method:<12} {rate:>6}: {tuned.scores['accuracy']:.4f} (trained at {stage['rates']})"


def splits(data: Path, scratch: Path) -> tuple[Path, Path]:
    """Give the files with training and test rows; where there is one file, its rows are drawn apart."""
    if (data / "test.csv").exists():
        return data / "train.csv", data / "test.csv"
    import polars as pl

    table = pl.read_csv(data / "reviews.csv").unique("text", keep="first", maintain_order=True)
    table = table.sample(fraction=1.0, shuffle=True, seed=0)
    parts = {"train": table[NUM_TEST : 3 * NUM_TEST], "test": table[:NUM_TEST]}
    for name, part in parts.items():
        part.write_csv(scratch / f"{name}.csv")
    return scratch / "train.csv", scratch / "test.csv"


def page(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Write the page of rates."""
    lines = [
        "# Rates",
        "",
        "Written by `benchmarks/rates.py report`; the script's docstring says how to run it again. Five epochs in",
        "batches of 32, linear schedule; `trec` (1,000 rows, a tenth of them for validation) and `banking77`",
        "(3,000) with all-MiniLM-L6-v2, `zh_reviews` (2,000) with multilingual-e5-small. Test accuracy at nine rates,",
        "the best in bold, and at the rate that `auto` found; means, where there are several seeds. SE is the standard",
        "error of the best one's accuracy.",
        "",
    ]
    for name, cells in groups.items():
        lines += [f"## {name}", "", f"On {cells[0]['machine']}.", ""]
        for method in GRID:
            lines += table(method, [cell for cell in cells if cell["method"] == method])
        lines += verdicts(cells)
    return "\n".join(lines)


def table(method: str, cells: list[dict[str, Any]]) -> list[str]:
    """Write the grid of one method: rates down, data sets across; a cell that was not run leaves a gap."""
    found = {key: accuracy for key, (accuracy, _) in means(cells).items() if key[0] != AUTO}
    best = {name: max((value for (_, its), value in found.items() if its == name), default=None) for name in ROWS}
    lines = [f"| `{method}` | " + " | ".join(ROWS) + " |", "|---|" + "---|" * len(ROWS)]
    for rate in GRID[method]:
        values = [found.get((str(rate), name)) for name in ROWS]
        shown = [
            "" if value is None else f"**{value:.4f}**" if value == best[name] else f"{value:.4f}"
            for name, value in zip(ROWS, values, strict=True)
        ]
        lines.append(f"| {rate:g} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def means(cells: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, int]]:
    """Give the mean accuracy and the number of seeds by rate and data set."""
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in cells:
        taken[cell["rate"], cell["set"]].append(cell["accuracy"])
    return {key: (mean(values), len(values)) for key, values in taken.items()}


def verdicts(cells: list[dict[str, Any]]) -> list[str]:
    """Write how `auto` did against the best of the grid, among the rates that were trained with as many seeds."""
    lines = [
        "| data | method | best of the grid | seeds | SE | `auto` | at rate | within one SE |",
        "|---|" + "---|" * 7,
    ]
    for name in ROWS:
        for method in GRID:
            of_case = [cell for cell in cells if (cell["set"], cell["method"]) == (name, method)]
            grid = {rate: it for (rate, _), it in means(of_case).items() if rate != AUTO}
            found = [cell for cell in of_case if cell["rate"] == AUTO]
            if not grid or not found:
                continue
            auto, num_seeds = means(found)[AUTO, name]
            best, accuracy = max(
                ((rate, value) for rate, (value, seeds) in grid.items() if seeds >= num_seeds), key=lambda pair: pair[1]
            )
            error = math.sqrt(accuracy * (1 - accuracy) / found[0]["rows"]["test"])
            is_near = auto >= accuracy - error
            at = ", ".join(dict.fromkeys(f"{rate:.2g}" for cell in found for rate in cell["rates"]))
            shown = f"{accuracy:.4f} at {best} ({len(grid)} of {len(GRID[method])} rates)"
            verdict = "yes" if is_near else "no"
            lines.append(
                f"| {name} | `{method}` | {shown} | {num_seeds} | {error:.4f} | {auto:.4f} | {at} | {verdict} |"
            )
    reached = [line.endswith("| yes |") for line in lines[2:]]
    return [*lines, "", f"Within one standard error of the grid's best in {sum(reached)} of {len(reached)} cases.", ""]


if __name__ == "__main__":
    main()
