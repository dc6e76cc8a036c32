"""Tables for the terminal, made from what a run wrote."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from alloytune.metrics import METRICS
from alloytune.record.folder import RunFolder
from alloytune.report.scores import (
    compared_answers,
    other_scores,
    score_line,
    share_cell,
    shown_metrics,
    value_cells,
)

MAX_CLASSES = 20  # more are left to results.json
MAX_CONFUSION = 8
MAX_NAMED = 10  # classes of the training rows, in the account of the data
_RULED = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n")  # a line under the heading, nothing else


def audit_table(audit: Mapping[str, Any]) -> RenderableType:
    """Show what cleaning read, repaired, dropped and kept."""
    table = Table(title="Data", title_justify="left", show_header=False, box=None, padding=(0, 2))
    for file, count in audit["read"].items():
        _add_row(table, f"rows read from {file}", f"{count:,}")
    _add_row(table, "repaired (broken characters)", f"{audit['repaired']:,}")
    for reason, count in audit["dropped_by_reason"].items():
        _add_row(table, f"dropped: {reason}", f"{count:,}")
    for reason, count in audit["not_used"].items():
        _add_row(table, f"not used: {reason}", f"{count:,}")
    if audit.get("parted"):  # absent in folders of runs before there was any
        _add_row(table, "more rows, of cells that list several documents", f"{audit['parted']:,}")
    if audit["near_groups"]:
        _add_row(table, "near-duplicates, each group kept in one split", f"{audit['near_rows']:,}")
    for split, count in audit["kept"].items():
        _add_row(table, split, f"{count:,}")
    warnings = [Text(f"note: {warning}", style="yellow") for warning in audit["warnings"]]
    return Group(table, *_classes_lines(audit["classes"].get("train", {})), *warnings)


def _classes_lines(counts: Mapping[str, int]) -> list[Text]:
    """Name the classes of train with their rows, the most frequent first."""
    if not counts:
        return []
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[:MAX_NAMED])
    more = len(ordered) - MAX_NAMED
    others = f" and {more:,} more, down to {ordered[-1][1]:,}" if more > 0 else ""
    return [Text(f"  {len(counts):,} class{'' if len(counts) == 1 else 'es'} in train: {shown}{others}")]


def tell_of_rows(learning: Any, max_length: int | None) -> Text:
    """Tell what becomes of an `alloytune.learning.Learning`'s rows: what is cut or left out, and what else is noted."""
    cut, left_out = sum(learning.num_cut.values()), count_reasons(learning.left_out)
    lines = [tell_cut(cut, max_length), tell_left_out(left_out), *learning.notes]
    return Text("\n".join(f"note: {line}" for line in lines if line), style="yellow")


def tell_cut(num_cut: int, max_length: int | None) -> str:
    """Tell how many rows are read in part only; empty where none is."""
    are = "is longer than" if num_cut == 1 else "are longer than"
    up_to = "is read up to there" if num_cut == 1 else "are read up to there"
    return f"{count_rows(num_cut)} {are} {max_length} tokens and {up_to}" if num_cut else ""


def count_reasons(left_out: Mapping[str, Sequence[Sequence[str]]]) -> Counter[str]:
    """Count the rows that were not learned from by the reason; `left_out` are pairs of a row and a reason by split."""
    return Counter(reason for rows in left_out.values() for _, reason in rows)


def tell_left_out(reasons: Mapping[str, int]) -> str:
    """Tell how many rows are left out, and why; empty where none is."""
    if not reasons:
        return ""
    total = sum(reasons.values())
    listed = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
    return f"{count_rows(total)} {'is' if total == 1 else 'are'} left out ({listed})"


def tell_trained_on(scores: Mapping[str, Any]) -> str:
    """Tell how many of the rows that were scored the training knew; empty where it knew none."""
    known = scores["trained_on"]
    are = "is also a training row" if known == 1 else "are also training rows"
    return f"{count_rows(known)} {are} of this run: scores on them say nothing of new texts" if known else ""


def stages_table(results: Mapping[str, Any]) -> Table:
    """Show what each stage trained, cost and reached on validation."""
    metric, start = results["recipe"]["metric"], results["start"]["values"]
    metrics = shown_metrics(start, metric)
    table = _table("Stages, scored on validation")
    table.add_column("stage")
    for heading in ("trained", "share", "s", "MiB", *(METRICS[name].heading for name in metrics), "change"):
        table.add_column(heading, justify="right")
    table.add_column("decision")
    _add_row(table, "(before)", *[""] * 4, *(f"{start[name]:.4f}" for name in metrics), "", "")
    for stage in results["stages"]:
        _add_row(table, *_stage_cells(stage, metrics, metric))
    return table


def _stage_cells(stage: Mapping[str, Any], metrics: Sequence[str], metric: str) -> list[str]:
    if "scores" not in stage:
        return [stage["name"], *[""] * (5 + len(metrics)), stage["decision"]]
    return [
        stage["name"],
        short_count(stage["trained_parameters"]),
        share_cell(stage),
        f"{stage['seconds']:.0f}",
        f"{stage['peak_memory_bytes'] / 2**20:,.0f}",
        *value_cells(stage, metrics),
        "" if "learns" in stage else f"{stage['change'][metric]:+.4f}",
        stage["decision"] + (f" (try {stage['tries']})" if stage["tries"] > 1 else "") + other_scores(stage),
    ]


def movement_table(results: Mapping[str, Any]) -> Table | None:
    """Show how far each part of a joint objective has moved, as a part of its norm; None where there is none."""
    stages = [stage for stage in results["stages"] if "movement" in stage]
    if not stages:
        return None
    parts = list(dict.fromkeys(part for stage in stages for part in stage["movement"]))
    table = _table("Movement since the stage began, as a part of the weights' norm")
    table.add_column("stage")
    for part in parts:
        table.add_column(part, justify="right")
    for stage in stages:
        _add_row(table, stage["name"], *(_short_share(stage["movement"].get(part)) for part in parts))
    return table


def _short_share(share: float | None) -> str:
    return "" if share is None else f"{share:.3%}"


def short_rates(rates: Sequence[float]) -> str:
    """Write rates, largest first: each of up to three, or the first and the last."""
    shown = [f"{rate:.2g}" for rate in rates]
    return ", ".join(shown) if len(shown) <= 3 else f"{shown[0]} to {shown[-1]}"


def named_rates(rates: Iterable[tuple[str, float]]) -> str:
    """Write rates by what moves at them, largest first; without it where there is one rate, or more than three."""
    movers: dict[float, dict[str, None]] = {}
    for mover, rate in rates:
        movers.setdefault(rate, {})[mover] = None
    ordered = sorted(movers, reverse=True)
    if not 1 < len(ordered) <= 3:
        return short_rates(ordered)
    return ", ".join(f"{rate:.2g} ({', '.join(movers[rate])})" for rate in ordered)


def short_count(number: int) -> str:
    """Write a count in three digits or so: 770, 148k, 22.7M, 1.24B, 3.1T."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def count_rows(number: int) -> str:
    """Write a number of rows: 1 row, 2,000 rows."""
    return f"{number:,} row" if number == 1 else f"{number:,} rows"


def _table(title: str) -> Table:
    return Table(
        title=Text(title, "bold", no_wrap=True, overflow="ignore"),  # a title may be wider than its table
        title_justify="left",
        box=_RULED,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )


def _add_row(table: Table, *cells: str | Text) -> None:
    """Add a row; a label or a path may look like markup, and is shown as it is."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def scores_table(test: Mapping[str, Any] | None, name: str = "Test") -> RenderableType:
    """Show the scores on `name` with their intervals, and the tables behind them where they fit."""
    if test is None:
        return Text("No rows were kept for a test.")
    table = _table(f"{name} ({count_rows(test['rows'])}{compared_answers(test)})")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for metric, (low, high) in test["intervals"].items():
        _add_row(table, metric, f"{test['values'][metric]:.4f}", f"{low:.4f} to {high:.4f}")
    return Group(table, *detail_tables(test["details"]))


def detail_tables(details: Mapping[str, Any]) -> list[Table]:
    """Show what stands behind scores: lists of entries a row each, counts by true and predicted label as a square."""
    tables = []
    for name, found in details.items():
        if isinstance(found, list) and 0 < len(found) <= MAX_CLASSES:
            tables.append(_entries_table(_title(name), found))
        elif isinstance(found, dict) and len(found) <= MAX_CONFUSION:
            tables.append(_counts_table(f"{_title(name)} (rows: true)", found))
    return tables


def _entries_table(title: str, entries: list[Mapping[str, Any]]) -> Table:
    table = _table(title)
    for number, heading in enumerate(entries[0]):
        table.add_column(
            METRICS[heading].heading if heading in METRICS else heading, justify="right" if number else "left"
        )
    for entry in entries:
        _add_row(table, *map(_cell, entry.values()))
    return table


def _counts_table(title: str, counts: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table(title)
    table.add_column("")
    for label in counts:
        table.add_column(Text(label), justify="right")
    for true in counts:
        _add_row(table, true, *(f"{counts[true].get(predicted, 0):,}" for predicted in counts))
    return table


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _cell(value: object) -> str:
    match value:
        case float():
            return f"{value:.3f}"
        case int():
            return f"{value:,}"
        case list():
            return json.dumps(value, ensure_ascii=False)
    return " ".join(str(value).split())


def predictions_table(predictions: list[Mapping[str, Any]]) -> Table:
    """Show some predictions on test rows; what stands before `predicted` was given."""
    table = _table("Some test rows")
    for name, value in predictions[0].items():
        is_number = isinstance(value, float)
        table.add_column(
            name, max_width=40, no_wrap=True, overflow="ellipsis", justify="right" if is_number else "left"
        )
    for row in predictions:
        is_wrong = row.get("label", row["predicted"]) != row["predicted"] and isinstance(row["predicted"], str)
        cells = {name: f"{value:.2f}" if isinstance(value, float) else _cell(value) for name, value in row.items()}
        styles = {"predicted": "red" if is_wrong else ""}
        _add_row(table, *(Text(cell, style=styles.get(name, "")) for name, cell in cells.items()))
    return table


def run_report(folder: RunFolder) -> RenderableType:
    """Show everything about a finished run but where it lies, which `print_places` prints."""
    results = folder.read("results.json")
    movement = movement_table(results)
    left_out = tell_left_out(count_reasons(results.get("rows_left_out", {})))
    parts: list[RenderableType] = [
        *([Text(f"{left_out}; results.json lists them", style="yellow")] if left_out else ()),
        stages_table(results),
        *([movement] if movement else ()),
        scores_table(results["test"]),
    ]
    if results["predictions"]:
        parts.append(predictions_table(results["predictions"]))
    return Group(*parts)


def report_so_far(folder: RunFolder) -> RenderableType:
    """Show what a run that is not finished has done, and how to go on with it."""
    recipe = folder.read("resolved.json")
    stages = {stage["name"]: folder.stage(number, stage["name"]) for number, stage in enumerate(recipe["stages"])}
    done = {name: result for name, stage in stages.items() if (result := stage.result())}
    parts: list[RenderableType] = []
    if folder.is_scored:
        start = folder.read("stages/start.json")
        parts.append(stages_table({"recipe": recipe, "start": start, "stages": list(done.values())}))
    for name, stage in stages.items():
        if name not in done and (steps := stage.rows("steps")):
            newest = [{key: row[key] for key in row if key in METRICS} for row in stage.rows("scores")[-1:]]
            scores = "".join(f"; scored last: {score_line(values)}" for values in newest)
            parts.append(Text(f"{name}: at update {steps[-1]['update']:,}{scores}"))
    parts.append(Text(f"Not finished. Go on with: alloytune train --resume {shlex.quote(str(folder.path))}", "bold"))
    return Group(*parts)


def print_places(console: Console, folder: RunFolder) -> None:
    """Print where a finished run is saved and how to use it, each unbroken, so that it can be copied."""
    results = folder.read("results.json")
    saved = ", ".join(str(folder.path / name) for name in results["saved"])
    use = f"alloytune predict {shlex.quote(str(folder.path))} NEW.csv --output predictions.csv"
    if "preference" in results.get("recipe", {}).get("task", ""):  # by its name, or with settings
        use = f'alloytune generate {shlex.quote(str(folder.path))} "What it is asked"'
    console.print(Text(f"Saved: {saved}"), soft_wrap=True)
    console.print(Text(f"Use it: {use}", style="bold"), soft_wrap=True)


def estimate_table(cost: Any) -> RenderableType:
    """Show what each stage moves and costs; `cost` is an `alloytune.estimate.Estimate`."""
    moves, costs = _table("What moves"), _table("What it costs (tried on a few rows; nothing was trained)")
    for heading in ("stage", "train", "adapter"):
        moves.add_column(heading)
    for heading in ("weights", "share", "rate from" if any(stage.searches for stage in cost.stages) else "rate"):
        moves.add_column(heading, justify="right", no_wrap=True)
    costs.add_column("stage")
    for heading in ("updates", "minutes", "FLOPs an update", "of full", "MiB", "of full"):
        costs.add_column(heading, justify="right", no_wrap=True)
    for stage in cost.stages:
        _add_row(
            moves,
            stage.name,
            stage.train,
            stage.attached,
            short_count(stage.num_trained),
            f"{stage.num_trained / stage.num_parameters:.1%}",
            short_rates(stage.rates),
        )
        _add_row(
            costs,
            stage.name,
            "by time" if stage.num_updates is None else f"{stage.num_updates:,}",
            "" if stage.num_updates is None else f"{stage.seconds / 60:.1f}",
            short_count(stage.update.flops),
            f"{stage.flops_share:.0%}",
            f"{stage.update.peak_memory_bytes / 2**20:,.0f}",
            f"{stage.memory_share:.0%}",
        )
    time = f"{cost.seconds / 60:.1f} minutes" if cost.seconds >= 60 else f"{cost.seconds:.0f} s"
    whole = Text(f"The whole run: about {time} of training and scoring on this machine, beside loading and saving.")
    return Group(moves, costs, whole)
