"""What do all shipped recipes reach in the same number of updates, their rates found alike?

    python benchmarks/recipes_quality.py run --data DIR --name NAME    # cells that are done are passed over
    python benchmarks/recipes_quality.py report                        # writes docs/results.md

DIR holds `trec` and `banking77`, each with `train.csv` and `test.csv` (columns `text` and `label`), of which 1,000 and
3,000 training rows are used. Every recipe gets the updates of five epochs in batches of 32; one of several stages
shares them out as its epochs do, and no stage ends early. Rates are the recipes' own, left to
`auto`: searched for in stages of about 107 updates and more, starting values in shorter ones. Each cell runs in a
process of its own, so that its peak memory is its own.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from quality import HERE, SEEDS, fine_tune, read_cells, spread, write_cell, write_page

CELLS = HERE / "results" / "recipes"
ROWS = {"trec": 1000, "banking77": 3000}
PER_EPOCH = {"trec": 29, "banking77": 85}  # updates of 32 rows, a tenth of them held out for validation
EPOCHS = 5


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--name", required=True, help="names the set of cells, such as cpu")
    run.add_argument("--sets", nargs="+", default=list(ROWS))
    run.add_argument("--recipes", nargs="+", help="all shipped ones where absent")
    run.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    run.add_argument("--workers", type=int, default=1, help="runs at a time; their seconds are not comparable then")
    run.add_argument("--output", type=Path, default=CELLS)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "report":
        write_page()
        return
    from alloytune.recipe.shipped import shipped_names

    output = options.output / options.name
    output.mkdir(parents=True, exist_ok=True)
    cells = [
        (output / f"{name}-{recipe}-{seed}.json", options.data / name, recipe, seed)
        for seed in options.seeds
        for name in options.sets
        for recipe in options.recipes or shipped_names()
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in [pool.submit(run_cell, *cell) for cell in cells if not cell[0].exists()]:
            done.result()


def run_cell(file: Path, data: Path, recipe: str, seed: int) -> None:
    """Fine-tune by one recipe and write its cell."""
    with tempfile.TemporaryDirectory() as scratch:
        figures = fine_tune(data, at_equal_updates(recipe, data.name), seed, Path(scratch) / "run", ROWS[data.name])
    write_cell(file, data.name, recipe, seed, figures)


def at_equal_updates(name: str, dataset: str) -> Any:
    """Read a shipped recipe and share the updates of five epochs out over its stages, as its own epochs do."""
    from alloytune.recipe.read import read_recipe
    from alloytune.recipe.types.ending import Until

    recipe = read_recipe(name).recipe
    epochs = {
        stage.name: stage.until.epochs or (stage.until.updates or 0) / PER_EPOCH[dataset]
        for stage in recipe.stages
        if stage.train is not None
    }
    left, stages = EPOCHS * PER_EPOCH[dataset], []
    whole, last = left / sum(epochs.values()), list(epochs)[-1]
    for stage in recipe.stages:
        if stage.train is not None:
            updates = left if stage.name == last else max(1, round(epochs[stage.name] * whole))
            left -= updates
            stage = stage.model_copy(update={"until": Until(updates=updates)})
        stages.append(stage)
    return recipe.model_copy(update={"stages": stages})


def sections() -> Iterator[str]:
    """Give the lines of the part of docs/results.md that is about all recipes; none where no cell was run."""
    for name, cells in read_cells(CELLS).items():
        first = cells[0]
        versions = ", ".join(f"{package} {number}" for package, number in first["versions"].items())
        yield f"## All recipes, {name}"
        yield ""
        yield "Written by `benchmarks/recipes_quality.py report`. all-MiniLM-L6-v2; the updates of five epochs for"
        yield "every recipe, in batches of 32, rates left to `auto` (searched for in stages of 107 updates and"
        yield "more, starting values in shorter ones). Test accuracy: mean over the seeds ± their standard"
        yield "deviation, and the 95 % interval over test rows, its bounds averaged. Share: the most weights that one"
        yield "stage trains. One seed does not tell recipes apart that are a few hundredths apart. `head` passes"
        yield f"over the rows 20 times where it is used as shipped. On {first['machine']}; {versions}."
        yield ""
        for dataset in ROWS:
            yield from table([cell for cell in cells if cell["set"] == dataset])


def table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Give the table of one data set, the best recipe first."""
    if not cells:
        return
    by_recipe: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        by_recipe.setdefault(cell["method"], []).append(cell)
    yield f"{cells[0]['set']}, {cells[0]['rows']['train']:,} training rows:"
    yield ""
    yield "| recipe | accuracy | 95 % interval | macro-F1 | share | updates | peak memory | seeds |"
    yield "|---|---|---|---|---|---|---|---|"
    for recipe, found in sorted(by_recipe.items(), key=lambda pair: -mean(pair[1], "accuracy")):
        low, high = (statistics.mean(cell["intervals"]["accuracy"][bound] for cell in found) for bound in (0, 1))
        shown = [
            f"`{recipe}`",
            spread([cell["accuracy"] for cell in found]),
            f"{low:.4f} to {high:.4f}",
            spread([cell["macro_f1"] for cell in found]),
            f"{100 * mean(found, 'trained_share'):.3g} %",
            f"{mean(found, 'updates'):.0f}",
            f"{mean(found, 'peak_memory_bytes') / 2**30:.2f} GiB",
            f"{len(found)}",
        ]
        yield "| " + " | ".join(shown) + " |"
    yield ""


def mean(cells: list[dict[str, Any]], key: str) -> float:
    """Give the mean of a figure over cells."""
    return statistics.mean(cell[key] for cell in cells)


if __name__ == "__main__":
    main()
