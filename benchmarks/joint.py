"""What a joint objective costs, and what its weights do.

    python benchmarks/joint.py cost [--rounds N]    # an update of every mode against full fine-tuning, taking turns
    python benchmarks/joint.py weights              # how far weights move, by loss weight and by optimizer
    python benchmarks/joint.py report               # puts both into docs/joint.md and draws docs/joint.svg

`cost` takes all-MiniLM-L6-v2 and the demo's tweets, batch 32: every mode makes the same update, one after another, so
that whatever else the machine does falls on all alike. Adapters stand in the top third of the layers, which is partial.
`views` are the full and the adapter view; with the partial one there are three passes.
`weights` takes a BERT of two layers that is made on the spot. The picture needs the extra `benchmarks`.
"""

import argparse
import json
import time
from collections import defaultdict
from functools import cache
from statistics import median
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from alloytune.build.data import build_data_settings
from alloytune.build.joint import make_around, make_training_loss
from alloytune.build.pace import make_stage_optimizer
from alloytune.build.plan import build_plan, build_updates
from alloytune.build.session import build_session
from alloytune.data.prepare import Dataset, prepare
from alloytune.demo import tweets_file
from alloytune.models.load import quiet
from alloytune.recipe.read import recipe_from
from alloytune.recipe.types.optimizer import read_optimizer
from alloytune.stages.stage import begin_stage
from alloytune.train.flops import count_flops
from alloytune.train.loop import training_steps
from alloytune.train.movement import relative_movement
from alloytune.train.moving import Group, Moving, make_optimizer
from alloytune.train.optimizers import OptimizerSettings
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
    "all views": {"mode": "views", "full": 0.3, "partial": 0.7, "adapter": 1, "of": TOP},
    "sample": {"mode": "sample", "full": 1, "partial": 1, "adapter": 1, "of": TOP},
    "route": {"mode": "route", "full": 1, "adapter": 1},
}
MOST = {"update": 1.10, "views": 1.35, "sample": 0.85, "route": 1.15}  # what the project set out for
WARMING = 3
UPDATES = 100
SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
RATES = {"adamw": 1e-4, "sgd": 1e-3}
CURVES = {
    "of the loss, under AdamW": ("adamw", "of_loss"),
    "of the loss, under SGD": ("sgd", "of_loss"),
    "of the rate, under AdamW (mode `update`)": ("adamw", "of_rate"),
}


@cache
def tweets() -> Dataset:
    """Read some of the demo's tweets."""
    data = {"train": str(tweets_file()), "label": "sentiment", "encoding": "mac_roman", "rows": 3000}
    data["near_duplicates"] = False  # nothing is scored
    stages = [{"name": "only", "train": "all"}]
    return prepare(build_data_settings(recipe_from({"model": MODEL, "data": data, "stages": stages})))


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


# What a weight does: full training of a small BERT under a loss, or at a rate, that is multiplied with it.


def measure_weights() -> None:
    """Measure how far the body moves in UPDATES updates, by what is multiplied with what."""
    quiet()
    found = {name: [movement(kind, **{key: scale}) for scale in SCALES] for name, (kind, key) in CURVES.items()}
    CELLS.mkdir(parents=True, exist_ok=True)
    result = {"updates": UPDATES, "scales": SCALES, "movement": found}
    (CELLS / "weights.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def movement(kind: str, of_loss: float = 1.0, of_rate: float = 1.0) -> float:
    """Give ||now - start|| / ||start|| of a small BERT's body after training; its head moves along, unweighted."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    model = BertForSequenceClassification(config)
    weights = dict(model.named_parameters())
    body = [name for name in weights if name.startswith("bert.")]
    rate = RATES[kind]
    groups = (
        Group(tuple(body), rate * of_rate, 0.0),
        Group(tuple(name for name in weights if name not in body), rate, 0.0, "head"),
    )
    optimizer = make_optimizer(Moving(groups, OptimizerSettings(*read_optimizer(kind))), weights)
    start = {name: weights[name].detach().clone() for name in body}
    for _ in range(UPDATES):
        tokens = torch.randint(1, 200, (32, 12))
        loss = model(input_ids=tokens, labels=(tokens[:, 1] > 100).long()).loss
        loss.backward()
        for name in body:
            weights[name].grad *= of_loss
        optimizer.step()
        optimizer.zero_grad()
    moved = relative_movement(model, start, dict.fromkeys(body, "body"))["body"]
    assert moved is not None
    return moved


# The page.


def report() -> None:
    """Put what was measured into the page, and draw the picture."""
    weights = json.loads((CELLS / "weights.json").read_text(encoding="utf-8"))
    cost = json.loads((CELLS / "cost.json").read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    for mark, lines in {"weights": weights_lines(weights), "cost": cost_lines(cost)}.items():
        before, _, rest = page.partition(f"<!-- {mark} -->\n")
        after = rest.partition(f"<!-- /{mark} -->")[2]
        page = f"{before}<!-- {mark} -->\n" + "\n".join(lines) + f"\n<!-- /{mark} -->{after}"
    PAGE.write_text(page, encoding="utf-8")
    draw(weights)


def weights_lines(found: dict[str, Any]) -> list[str]:
    """Give the table of movements."""
    heads = [f"{scale:g}" for scale in found["scales"]]
    lines = [
        f"How far the body of a small BERT moves in {found['updates']} updates, ||now - start|| / ||start||, when the",
        "gradient of its loss, or its rate, is multiplied with a weight (`benchmarks/joint.py weights`):",
        "",
        f"| weight | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    return [*lines, *(f"| {name} | {' | '.join(f'{m:.2g}' for m in row)} |" for name, row in found["movement"].items())]


def cost_lines(found: dict[str, Any]) -> list[str]:
    """Give the table of costs."""
    lines = [
        f"Against full fine-tuning of all-MiniLM-L6-v2, batch 32, LoRA and partial weights in the top third; "
        f"{len(found['seconds']['full'])}",
        f"updates of each, taking turns on {found['machine']} (`benchmarks/joint.py cost`). Time: ratio of medians. "
        "Operations are",
        "counted, forward and backward.",
        "",
        "| mode | operations | time | set out for |",
        "|---|---|---|---|",
    ]
    for mode, most in MOST.items():
        reached = "reached" if found["time"][mode] <= most else "not reached"
        lines.append(f"| `{mode}` | {found['flops'][mode]:.2f} | {found['time'][mode]:.2f} | {most:.2f}: {reached} |")
    more = {f"`sample`, a draw of {view}": f"sample: {view}" for view in ("full", "partial", "adapter")}
    for shown, key in {"`views`, all three": "all views", **more}.items():
        lines.append(f"| {shown} | {found['flops'][key]:.2f} | {found['time'][key]:.2f} | |")
    return lines


def draw(found: dict[str, Any]) -> None:
    """Draw movement against weight."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "joint", "svg.fonttype": "none"}  # the same file every time, with text as text
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for (name, row), mark in zip(found["movement"].items(), "osv", strict=True):
        axes.loglog(found["scales"], row, marker=mark, label=name)
    axes.set_xlabel("weight")
    axes.set_ylabel("movement of the body, as a part of its norm")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None})


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
    elif given.command == "weights":
        measure_weights()
    else:
        report()


if __name__ == "__main__":
    main()
