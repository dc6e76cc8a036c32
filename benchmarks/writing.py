"""What do the recipes under examples/ make of a small model that answers instructions, and what does it forget?

    python benchmarks/writing.py run --model MODEL --data ALPACA.jsonl    # cells that are done are passed over
    python benchmarks/writing.py report                                   # writes docs/results-writing.md

ALPACA.jsonl has `instruction`, `input` and `output`. Every recipe sees the same rows. Before and after are scored on
the same held-out test rows in float32: the loss of a token of the wanted answers, and chrF of greedy answers. What is
forgotten shows in the perplexity of text that has nothing to do with the data: docstrings of Python's own library.
"""

import argparse
import ast
import inspect
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
CELLS = HERE / "results" / "writing"
PAGE = HERE.parent / "docs" / "results-writing.md"
RECIPES = ("alpaca-lora", "alpaca-hybrid")
DOCSTRINGS = 40
SHORTEST, LONGEST = 400, 900  # characters of a docstring


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--model", required=True)
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--recipes", nargs="+", default=RECIPES)
    run.add_argument("--set", action="append", default=[], dest="overrides", help="as alloytune train --set")
    run.add_argument("--output", type=Path, default=CELLS)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "report":
        PAGE.write_text(page([json.loads(file.read_text()) for file in sorted(CELLS.glob("*.json"))]), encoding="utf-8")
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for recipe in options.recipes:
        cell = options.output / f"{recipe}.json"
        if not cell.exists():
            with tempfile.TemporaryDirectory() as scratch:
                figures = run_cell(recipe, options.model, options.data, options.overrides, Path(scratch) / "run")
            cell.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def run_cell(recipe: str, model: str, data: Path, overrides: Sequence[str], output: Path) -> dict[str, Any]:
    """Fine-tune by a recipe, and score the model before and after on the same rows."""
    import polars as pl

    import alloytune
    from alloytune.build.session import build_session
    from alloytune.data.store import load_splits
    from alloytune.tasks.generation import Generation

    began = time.perf_counter()
    tuned = alloytune.tune(data, model, EXAMPLES / f"{recipe}.yaml", output=output, overrides=tuple(overrides))
    seconds = time.perf_counter() - began
    stages = tuned.results["stages"]
    session = build_session(tuned.recipe, load_splits(output / "data"))
    texts = Generation(("text",), packing=False)
    unrelated = texts.encode(pl.DataFrame({"text": docstrings()}), tuned.tokenizer, 256).examples
    models, held_out = {"before": session.state.model, "after": tuned.model}, session.examples["test"]
    scores = {when: score(model, session.task, held_out, tuned) for when, model in models.items()}
    forgotten = {when: score(model, texts, unrelated, tuned).values["perplexity"] for when, model in models.items()}
    return {
        "recipe": recipe,
        **{when: scores[when].values | {"unrelated_perplexity": forgotten[when]} for when in models},
        "fall_of_loss": fall_of_loss(scores["before"].figures, scores["after"].figures),
        "rows": tuned.results["rows"],
        "left_out": {split: len(rows) for split, rows in tuned.results["rows_left_out"].items()},
        "answered_rows": tuned.task.generate,
        "decisions": [f"{stage['name']}: {stage['decision']}" for stage in stages],
        "trained_share": max(stage["trained_parameters"] / stage["parameters"] for stage in stages),
        "seconds": sum(stage.get("seconds", 0.0) for stage in stages),
        "whole_seconds": seconds,
        "overrides": list(overrides),
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {tuned.results['precision']}",
        "python": platform.python_version(),
    }


def fall_of_loss(before: list[list[float]], after: list[list[float]], draws: int = 2000) -> list[float]:
    """Give the 95 % interval of how far the loss of a token fell, over draws of the rows that both models answered."""
    import numpy as np

    (lost, tokens), (lost_after, _) = (np.array(figures).T[:2] for figures in (before, after))
    chosen = np.random.default_rng(0).integers(len(tokens), size=(draws, len(tokens)))
    falls = (lost - lost_after)[chosen].sum(axis=1) / tokens[chosen].sum(axis=1)
    return [float(number) for number in np.quantile(falls, [0.025, 0.975])]


def score(model: Any, task: Any, examples: Sequence[Any], tuned: Any) -> Any:
    """Score a model in float32."""
    from alloytune.evaluate.predict import predict
    from alloytune.tasks.task import scores_of

    answers = predict(model.to(tuned.machine.device), task, examples, tuned.tokenizer, tuned.machine)
    return scores_of(task, answers, examples)


def docstrings() -> list[str]:
    """Give docstrings of functions and classes of the standard library, neither short nor long, in order."""
    folder = Path(inspect.getfile(ast)).parent
    found: list[str] = []
    for file in sorted(folder.glob("[a-z]*.py")):
        tree = ast.parse(file.read_bytes())
        nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
        texts = [text for node in nodes if (text := ast.get_docstring(node)) and SHORTEST <= len(text) <= LONGEST]
        found += texts[:2]  # of many modules, not much of each
    return found[:DOCSTRINGS]


def page(cells: list[dict[str, Any]]) -> str:
    """Write the page of results."""
    first = cells[0]
    versions = ", ".join(f"{package} {number}" for package, number in first["versions"].items())
    rows = ", ".join(f"{number} {split}" for split, number in first["rows"].items())
    lines = [
        "# Results: writing",
        "",
        "Written by `benchmarks/writing.py report` from the files under `benchmarks/results/writing/`; the script's",
        "docstring says how to run it again. SmolLM2-135M-Instruct on the English Alpaca sample, by the recipes under",
        "`examples/`. Before and after on the same held-out instructions; *loss* is that of a token of the wanted",
        "answers, its fall with an interval over draws of the rows, which both models answered; *chrF* is that of",
        f"greedy answers to the first {first['answered_rows']} of them, *unrelated* the perplexity of {DOCSTRINGS}",
        "docstrings of Python's library, which tells what was forgotten. The seconds compare nothing: other work ran",
        "on the same cores.",
        "",
        f"On {first['machine']}; {versions}, Python {first['python']}.",
        f"Rows: {rows}; left out because their answer is longer than the limit: {sum(first['left_out'].values())}.",
        "",
        "| recipe | | loss | it fell by (95 %) | chrF | unrelated | stages | trained share | training seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        lines += ["| " + " | ".join(line) + " |" for line in table_lines(cell)]
    return "\n".join([*lines, ""])


def table_lines(cell: dict[str, Any]) -> Iterator[list[str]]:
    """Give the two lines of a recipe."""
    low, high = cell["fall_of_loss"]
    for when in ("before", "after"):
        values, is_after = cell[when], when == "after"
        yield [
            f"`{cell['recipe']}`" if not is_after else "",
            when,
            f"{values['loss']:.3f}",
            f"{low:.3f} to {high:.3f}" if is_after else "",
            f"{values['chrf']:.3f}",
            f"{values['unrelated_perplexity']:.2f}",
            ", ".join(cell["decisions"]) if is_after else "",
            f"{cell['trained_share']:.1%}" if is_after else "",
            f"{cell['seconds']:.0f}" if is_after else "",
        ]


if __name__ == "__main__":
    main()
