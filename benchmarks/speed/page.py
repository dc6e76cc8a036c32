"""From cells to tables: ratios with their spread, shares of the machine's peak, what of the targets was reached."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from textwrap import wrap
from typing import Any

from cases import CASES

ROOT = Path(__file__).parents[2]
CELLS = ROOT / "benchmarks" / "results" / "speed"
PAGE = ROOT / "docs" / "benchmarks.md"
NAMES = {
    "alloytune": "Alloytune",
    "tuned": "Trainer + PEFT, tuned",
    "defaults": "Trainer + PEFT, defaults",
    "adapterhub": "AdapterHub, tuned alike",
    "pipeline": "pipeline at its best batch size",
}
NOT_RUN, MISSED = "not run", "**not reached**"
HEADINGS = (
    "tokens/s",
    "seconds",
    "whole, s",
    "start, s",
    "Alloytune is as fast, times",
    "peak memory, MB",
    "share of the peak",
    "test",
)
PARTIAL = ("top", "top-12", "head", "lora", "lora-top", "write-lora")
Cells = dict[tuple[str, str], list[dict[str, Any]]]  # by case and contender, in rounds


def read_cells(folder: Path) -> Cells:
    """Read all cells of a set."""
    cells: Cells = {}
    for file in sorted(folder.glob("*.json")):
        cell = json.loads(file.read_text(encoding="utf-8"))
        cells.setdefault((cell["case"], cell["contender"]), []).append(cell)
    return cells


def speed(cell: dict[str, Any], name: str) -> float:
    """Give what a case compares: rows a second, the whole of several trainings, or tokens a second."""
    if name == "predict":
        return float(cell["rows_per_second"])
    if len(CASES[name].stages) > 1:
        return 1 / float(cell["whole_seconds"])
    return float(cell["tokens_per_second"])


def ratios(cells: Cells, name: str, other: str, ours: str = "alloytune") -> list[float]:
    """Give how many times as fast this project was, round by round."""
    pairs = zip(cells.get((name, ours), []), cells.get((name, other), []), strict=False)
    return [speed(one, name) / speed(two, name) for one, two in pairs]


def memory_ratio(cells: Cells, name: str, other: str = "tuned") -> float | None:
    """Give this project's peak memory as a part of another's; medians."""
    found = [cells.get((name, who)) for who in ("alloytune", other)]
    if not all(found):
        return None
    one, two = (median(cell["peak_memory_bytes"] for cell in some or []) for some in found)
    return one / two


def added_memory_ratio(cells: Cells, name: str) -> float | None:
    """Give the same of what training adds to what is held before it: libraries, weights, tokenizer, rows."""
    found = [cells.get((name, who)) for who in ("alloytune", "tuned")]
    if not all(found) or not all("held_before_bytes" in cell for some in found for cell in some or []):
        return None
    one, two = (median(cell["peak_memory_bytes"] - cell["held_before_bytes"] for cell in some or []) for some in found)
    return one / two


def peak(cells: Cells, precision: str = "bfloat16") -> float | None:
    """Give the machine's measured operations a second in matrix products."""
    found = [cell for cell in cells.get(("peak", "machine"), []) if precision in cell]
    return median(cell[precision] for cell in found) if found else None


def operations(cells: Cells, name: str, contender: str) -> float | None:
    """Give the operations that a contender has to do: who keeps no activations runs the frozen layers every epoch."""
    found = cells.get((name, "count"))
    return found[0]["least" if contender == "alloytune" else "all"] if found else None


def share_of_peak(cells: Cells, name: str, contender: str) -> float | None:
    """Give operations / (seconds of training * the peak of the contender's precision)."""
    some, count = cells.get((name, contender)), operations(cells, name, contender)
    best = peak(cells, some[0]["precision"]) if some else None
    if not some or count is None or best is None:
        return None
    return count / median(cell["seconds"] for cell in some) / best


def with_spread(values: list[float]) -> str:
    """Give the median, and the smallest and largest."""
    if not values:
        return NOT_RUN
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def summary(name: str, cells: Cells) -> Iterator[str]:
    """Say in a few lines what a case came to."""
    if name == "peak":
        yield f"GEMM peak: {gigas(peak(cells, 'float32'))} GFLOP/s float32, {gigas(peak(cells))} bfloat16"
    elif name == "first-update":
        yield f"first update after {first_update(cells)} s"
    elif name == "predict":
        yield f"predict: {with_spread(ratios(cells, name, 'pipeline'))} times the pipeline"
        yield f"predict --precision auto: {with_spread(ratios(cells, name, 'pipeline', ours='fast'))} times"
    else:
        yield from case_table(name, cells)


def gigas(value: float | None) -> str:
    """Give billions."""
    return NOT_RUN if value is None else f"{value / 1e9:,.0f}"


def first_update(cells: Cells) -> str:
    """Give the median of the seconds to the first update."""
    found = cells.get(("first-update", "alloytune"))
    return f"{median(cell['seconds'] for cell in found):.1f}" if found else NOT_RUN


def case_table(name: str, cells: Cells) -> Iterator[str]:
    """Give a case's table: a line for each contender."""
    case = CASES[name]
    stages = ", ".join(f"{stage.method} {stage.epochs} ep at {stage.rate:g}" for stage in case.stages)
    yield f"### {name}: {case.title}"
    yield ""
    yield f"`{case.data}`, {case.rows:,} rows before the split, batch {case.batch}; {stages}."
    yield ""
    yield f"| | {' | '.join(HEADINGS)} |"
    yield "|---" * (len(HEADINGS) + 1) + "|"
    for contender in ("alloytune", "tuned", *case.others):
        yield f"| {NAMES[contender]} | {' | '.join(contender_row(name, contender, cells))} |"
    yield ""
    if len(case.stages) > 1:
        alone = [one / two for one, two in zip(*_tokens_per_second(cells, name), strict=False)]
        yield f"Training alone: {with_spread(alone)} times as fast as the tuned Trainer."
        yield ""
    yield from bound_lines(name, cells)


def _tokens_per_second(cells: Cells, name: str) -> Iterator[list[float]]:
    for who in ("alloytune", "tuned"):
        yield [cell["tokens_per_second"] for cell in cells.get((name, who), [])]


def contender_row(name: str, contender: str, cells: Cells) -> Iterator[str]:
    """Give the cells of a contender's line, under HEADINGS."""
    some = cells.get((name, contender))
    if not some:
        yield NOT_RUN
        yield from [""] * (len(HEADINGS) - 1)
        return

    def middle(key: str) -> float:
        return float(median(cell[key] for cell in some))

    of_peak = share_of_peak(cells, name, contender)
    yield f"{middle('tokens_per_second'):,.0f}"
    yield f"{middle('seconds'):.1f}"
    yield f"{middle('whole_seconds'):.1f}"
    yield f"{middle('start_seconds'):.1f}"
    yield "" if contender == "alloytune" else with_spread(ratios(cells, name, contender))
    yield f"{middle('peak_memory_bytes') / 1e6:,.0f}"
    yield "" if of_peak is None else f"{of_peak:.0%}"
    yield ", ".join(f"{key} {median(cell['scores'][key] for cell in some):.3f}" for key in sorted(some[0]["scores"]))


def bound_lines(name: str, cells: Cells) -> Iterator[str]:
    """Say what arithmetic allows in a case, and how near this project is."""
    best, count, some = peak(cells), cells.get((name, "count")), cells.get((name, "alloytune"))
    if best is None or not count or not some:
        return
    least, every = count[0]["least"], count[0]["all"]
    bound, seconds = least / best, median(cell["seconds"] for cell in some)
    tuned = cells.get((name, "tuned"))
    most = f"; at most {median(cell['seconds'] for cell in tuned) / bound:.1f} times the tuned Trainer" if tuned else ""
    yield f"Operations: {every / 1e12:.2f} T, {least / 1e12:.2f} T with frozen layers run once. Bound: {bound:.1f} s at"
    yield f"the bfloat16 peak{most}. Alloytune took {seconds / bound:.1f} times the bound."
    yield ""


def targets(cells: Cells) -> Iterator[str]:
    """Give the table of what was set out."""
    yield "| | set out | measured | |"
    yield "|---|---|---|---|"
    for name, case in CASES.items():
        if case.target is not None:
            found = ratios(cells, name, "tuned")
            yield _target(
                case.title, f"{case.target:g} times", with_spread(found), found and median(found) >= case.target
            )
    found = ratios(cells, "full", "defaults")
    yield _target("full fine-tuning, against the defaults", "3 times", with_spread(found), found and median(found) >= 3)
    of_peak = share_of_peak(cells, "full", "alloytune")
    words = NOT_RUN if of_peak is None else f"{of_peak:.0%}"
    yield _target("full fine-tuning, share of the bfloat16 GEMM peak", "50%", words, of_peak and of_peak >= 0.5)
    for title, limit, names, ratio in (
        ("peak memory, every case, as a part of the tuned Trainer's", 1.0, tuple(CASES), memory_ratio),
        ("peak memory, partial and adapter", 0.7, PARTIAL, memory_ratio),
        ("the same, of what training adds to what is held before it", 0.7, PARTIAL, added_memory_ratio),
    ):
        parts = [part for name in names if (part := ratio(cells, name)) is not None]
        words = f"{min(parts):.2f} to {max(parts):.2f}" if parts else NOT_RUN
        yield _target(title, f"at most {limit:g}", words, parts and max(parts) <= limit)
    found = ratios(cells, "predict", "pipeline")
    yield _target(
        "labels for new texts, against a pipeline", "2 times", with_spread(found), found and median(found) >= 2
    )
    found = ratios(cells, "predict", "pipeline", ours="fast")
    yield _target("the same with `--precision auto`", "2 times", with_spread(found), found and median(found) >= 2)
    words = first_update(cells)
    yield _target("from the command to the first update", "under 10 s", words, words != NOT_RUN and float(words) < 10)


def _target(title: str, wanted: str, measured: str, reached: Any) -> str:
    word = "" if measured == NOT_RUN else "reached" if reached else MISSED
    return f"| {title} | {wanted} | {measured} | {word} |"


def reasons(table: list[str]) -> Iterator[str]:
    """Say of what was not reached why, as far as that is known."""
    missed = [line.split(" | ")[0].removeprefix("| ") for line in table if line.endswith(f"{MISSED} |")]
    known = [f"- **{title}**: {REASONS[title]}" for title in missed if title in REASONS]
    if known:
        yield "What was not reached, and why:"
        yield ""
        for one in known:
            yield from wrap(one, 120, subsequent_indent="  ", break_on_hyphens=False)
        yield ""


def write_page() -> None:
    """Write the page from all cells, with the section on growth."""
    import sys

    sys.path.append(str(ROOT / "benchmarks"))
    from growth import section

    lines = ["# Benchmarks", "", *INTRODUCTION, ""]
    sets = sorted(folder for folder in CELLS.iterdir() if folder.is_dir()) if CELLS.exists() else []
    for folder in sets:
        lines += [*set_lines(folder.name, read_cells(folder)), ""]
    if not any(cell["machine"]["card"] for folder in sets for some in read_cells(folder).values() for cell in some):
        lines += [
            "## On a GPU",
            "",
            "The same command runs there. It has not been run: no accelerator was at hand.",
            "",
        ]
    PAGE.write_text("\n".join([*lines, *section()]) + "\n", encoding="utf-8")


def set_lines(name: str, cells: Cells) -> Iterator[str]:
    """Give the section of one machine."""
    yield f"## {name}"
    yield ""
    if cells:
        machine = next(cell["machine"] for some in cells.values() for cell in some)
        versions = {key: one for some in cells.values() for cell in some for key, one in cell["versions"].items()}
        where = machine["card"] or f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
        yield f"On {where}; {', '.join(f'{key} {one}' for key, one in sorted(versions.items()))}."
        float32, bfloat16 = gigas(peak(cells, "float32")), gigas(peak(cells))
        small = gigas(peak(cells, "bfloat16_minilm"))
        yield f"Measured peak of matrix products: {float32} GFLOP/s in float32, {bfloat16} in bfloat16. Products as"
        yield f"large as those of all-MiniLM-L6-v2 (832 x 384 by 384 x 1,536) reach {small} in bfloat16."
        yield ""
    table = list(targets(cells))
    yield from table
    yield ""
    yield from reasons(table)
    for case in CASES:
        yield from case_table(case, cells)


REASONS = {
    "full fine-tuning": "products of matrices, attention's among them, are 39 % of the time that operations take here "
    "(torch's profiler), where the measured peak allows 14 %; about a seventh of an update passes between operations. "
    "Of the operations, copies, most of them between float32 and bfloat16, are 11 %, multiplying by factors 8 %, "
    "AdamW 5 %, GELU 5 %, norms 3 %, softmax 3 %, taking padding out and putting it back 3 %.",
    "last 2 of 6 layers, three epochs": "on a machine with a peak of 1,404 GFLOP/s an earlier version reached 2.54.",
    "generation, SmolLM2 packed, full": "on a machine with a peak of 1,404 GFLOP/s an earlier version reached 1.55, in "
    "one round.",
    "the founding hybrid, whole run": "training alone is faster by what stands under its table. Three tenths of "
    "Alloytune's seconds are what the Trainer's chain does not do: cleaning and splitting, scoring after every epoch, "
    "a test with intervals, and loading what was saved in a new process. With more rows it is less.",
    "full fine-tuning, share of the bfloat16 GEMM peak": "the products of an update reach about 900 GFLOP/s, less than "
    "half of what the best shape gives when it is repeated: a product over 1,536 numbers takes oneDNN more than twice "
    "as long as one that gives as many (1.1 ms, 0.4). On a machine with a peak of 398 GFLOP/s an earlier version "
    "reached 48 %.",
    "peak memory, every case, as a part of the tuned Trainer's": "above it is the head alone, by 7 MB of 765: a "
    "head's training adds next to nothing to libraries and weights, and Alloytune's own libraries take 0.05 GB.",
    "peak memory, partial and adapter": "importing torch, transformers and PEFT takes 0.4 GB and loading "
    "all-MiniLM-L6-v2 0.1 GB, half of the Trainer's peak, and Alloytune's own libraries and data 0.05 GB. The line "
    "below it in the table counts what training adds.",
    "the same, of what training adds to what is held before it": "above it are the last 2 of 12 layers alone, 0.74. "
    "What is held is counted in Alloytune's favour: it tries the model on one row first, which brings 0.08 GB of the "
    "libraries' code and of weights (all-MiniLM-L6-v2) into memory that the Trainer brings there while it trains.",
    "labels for new texts, against a pipeline": "in float32, products of matrices are four fifths of Alloytune's "
    "seconds, near their measured peak; the pipeline computes the padding of unsorted texts beside. The default is "
    "float32, so that answers are those that transformers gives.",
}

INTRODUCTION = """
Written by `benchmarks/speed/run.py report` from the files under `benchmarks/results/`; the script's docstring says how
to run it again. Every contender trains the same model on the same rows with the same batch size, epochs and rate, in a
process of its own, and they take turns. Ratios are of neighbours in turn: median, and smallest and largest of the
rounds. Seconds are those of training, whatever the loop does in them included (filling a cache, compiling); loading,
tokenizing, evaluating and saving stand in the whole. Where several trainings follow one another, the whole is compared:
the Trainer's model is scored on validation and saved after each; Alloytune scores it after every epoch, decides, tests
with intervals, and loads what it saved again in a new process. *Whole* and *start* are from the process's first moment,
importing included, to the scores and to the first update. Peak memory is that of the process while it trains. Test
scores are those of the trained models on the same rows, in float32: a tenth of the rows before the split, so that 80
rows leave a standard error of 0.04.

*Defaults* is transformers' Trainer with PEFT as it comes (float32). *Tuned*: bfloat16, batches by length, fused AdamW,
no loader processes, glibc told to keep freed memory and to take huge pages, threads to sleep soon. `torch.compile` is
left off in it: lengths differ from batch to batch, and runs of this size end before it has paid.

Operations are those of matrix products and attention, counted on a batch of real rows by torch's counter: forward,
backward down to the lowest weight that moves, and the gradients of what moves, by token, times the tokens trained on
(the usual 6 N D, with what is frozen left out). Share of the peak = operations / (seconds x peak). Layers below all
that moves need be run once and not in every epoch, and Alloytune is counted so. Bound = those operations / the bfloat16
peak: no program that multiplies every matrix can be faster.
""".strip().splitlines()
