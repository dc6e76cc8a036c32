"""What a joint objective costs, and what its weights do.

    python benchmarks/joint.py cost [--rounds N]    # an update of every mode against full fine-tuning, taking turns
    python benchmarks/joint.py weights              # how far weights move, by loss weight and by optimizer
    python benchmarks/joint.py report               # puts both into docs/joint.md and draws docs/joint.svg

`cost` takes all-MiniLM-L6-v2 and the demo's tweets, batch 32: every mode makes the same update, one after another, so
that whatever else the machine does falls on all alike. Adapters stand in the top third of the layers, which is partial.
`weights` takes a BERT of two layers that is made on the spot.
"""

import argparse
import json
import time
from collections import defaultdict
from functools import cache
from statistics import median
from typing import Any

import polars as pl
import torch

from alloytune.build import build_plan, build_session, build_updates
from alloytune.data.prepare import Dataset, prepare
from alloytune.data.settings import DataSettings
from alloytune.demo import _tweets
from alloytune.joint import make_around, make_training_loss
from alloytune.models.load import quiet
from alloytune.pace import make_stage_optimizer
from alloytune.recipe.read import recipe_from
from alloytune.stages import begin_stage
from alloytune.train.flops import count_flops
from alloytune.train.loop import training_steps
from alloytune.train.turns import Turns
from quality import HERE, MODEL, machine

CELLS = HERE / "results" / "joint"
PAGE = HERE.parent / "docs" / "joint.md"
PICTURE = HERE.parent / "docs" / "joint.svg"
LORA = {"lora": {"rank": 8, "on": "layers[-2:] & (attention | mlp)"}}
TOP = "layers[-2:]"
MODES: dict[str, dict[str, Any] | None] = {
    "full": None,
    "update": {"mode": "update", "full": 0.3, "partial": 0.7, "adapter": 1, "of": TOP},
    "views": {"mode": "views", "full": 0.3, "adapter": 1},
    "sample": {"mode": "sample", "full": 1, "partial": 1, "adapter": 1, "of": TOP},
    "route": {"mode": "route", "full": 1, "adapter": 1},
}
MOST = {"update": 1.10, "views": 1.35, "sample": 0.85, "route": 1.15}  # what the project set out for
WARMING = 3


@cache
def tweets() -> Dataset:
    """Read some of the demo's tweets."""
    table = pl.read_csv(_tweets(), encoding="mac_roman").sample(3000, seed=0)
    settings = DataSettings(train=None, label="sentiment", near_duplicates=False)
    return prepare(settings, table)


class Trained:
    """A mode with a model of its own, ready for the next update."""

    def __init__(self, joint: dict[str, Any] | None) -> None:
        attached = {} if joint is None else {"attach": LORA, "joint": joint}
        stage = {"name": "only", "train": "all" if joint is None else "all | adapter", "rate": 1e-5, **attached}
        recipe = recipe_from({"model": MODEL, "precision": "float32", "stages": [stage]})
        self.session = session = build_session(recipe, tweets())
        self.views: list[str] = []
        moving, course = begin_stage(session, 0)
        optimizer = make_stage_optimizer(session, 0, moving)
        self.loss = make_training_loss(session, 0, moving, course)
        self.turns = Turns(
            course,
            moving.names,
            session.state.model,
            optimizer,
            on_turn=lambda turn, update, counts: self.views.append(turn.notes.get("view", "all")),
            around=make_around(session, 0, course),
        )
        updates = build_updates(session, 0, 0)
        self.batches = next(updates.after(0))
        self.steps = training_steps(
            session.state.model,
            optimizer,
            updates.after(0),
            self.loss,
            session.machine,
            still=lambda update: self.turns.at(update, 0.0),
            multiplier=lambda update: 1.0,
            clip=build_plan(session, 0, 0, updates).clip,
            seed=0,
        )

    def seconds(self) -> float:
        """Make one update; give the time that it took."""
        began = time.perf_counter()
        next(self.steps)
        return time.perf_counter() - began

    def flops(self) -> int:
        """Count the operations of the update that was made last, forward and backward, over one fixed batch."""
        return count_flops(self.session.state.model, self.batches, self.loss, self.session.machine)


def measure_cost(rounds: int) -> None:
    """Make the same updates in every mode, taking turns; the file is written anew after every round."""
    quiet()
    modes = {name: Trained(joint) for name, joint in MODES.items()}
    taken: dict[str, list[float]] = defaultdict(list)
    flops: dict[str, int] = {}
    CELLS.mkdir(parents=True, exist_ok=True)
    for number in range(rounds + WARMING):
        for name, mode in modes.items():
            seconds = mode.seconds()
            key = f"sample: {mode.views[-1]}" if name == "sample" else name
            if key not in flops:
                flops[key] = mode.flops()
            if number >= WARMING:
                taken[name].append(round(seconds, 4))
        views = modes["sample"].views[WARMING:]
        result = {"machine": machine(), "threads": torch.get_num_threads(), "views": views, "seconds": taken}
        shares = {key: count / flops["full"] for key, count in flops.items()}
        result |= {"flops": _with_sample(shares), "time": ratios(taken, views)}
        (CELLS / "cost.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("flops", "time")}, indent=1))


def ratios(taken: dict[str, list[float]], views: list[str]) -> dict[str, float]:
    """Give each mode's median over that of full; of `sample` each view's, over the same updates."""
    full = taken["full"]
    found = {
        name: median(seconds) / median(full)
        for name, seconds in taken.items()
        if seconds and name not in ("full", "sample")
    }
    for view in ("full", "partial", "adapter"):
        numbers = [number for number, drawn in enumerate(views) if drawn == view]
        if numbers:
            found[f"sample: {view}"] = median(taken["sample"][n] for n in numbers) / median(full[n] for n in numbers)
    return _with_sample(found)


def _with_sample(found: dict[str, float]) -> dict[str, float]:
    """Add the mean over the views that are drawn alike often."""
    views = [ratio for name, ratio in found.items() if name.startswith("sample: ")]
    return found | ({"sample": sum(views) / 3} if len(views) == 3 else {})


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("cost").add_argument("--rounds", type=int, default=60)
    commands.add_parser("weights")
    commands.add_parser("report")
    given = parser.parse_args()
    if given.command == "cost":
        measure_cost(given.rounds)


if __name__ == "__main__":
    main()
