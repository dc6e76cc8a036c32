"""What the shipped recipes cost, as `benchmarks/recipes.py` measured it on one model."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from alloytune.recipe.yaml_text import load

MEASURED_ON = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Cost:
    """A recipe's share of weights that move at one time, at most, and its training's operations as a part of full's."""

    trained_share: float
    relative: float

    def __str__(self) -> str:
        return f"{show_share(self.trained_share)} of the weights, {self.relative:.2f} of the cost of `full`"


def show_share(share: float) -> str:
    """Write a share with two digits that count, such as 0.15% or 37%."""
    return f"{100 * share:.2g}%" if share < 0.995 else "100%"


@cache
def measured() -> dict[str, tuple[Cost, str]]:
    """Give the cost of every recipe that was measured, and the fingerprint of what was measured."""
    file = files("alloytune.recipe") / "shipped" / "costs.json"
    lines = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {
        name: (Cost(line["trained_share"], line["relative_cost"]), line["fingerprint"]) for name, line in lines.items()
    }


def cost_of(name: str) -> Cost | None:
    """Give a recipe's cost; None where it was not measured."""
    return measured()[name][0] if name in measured() else None


def fingerprint(text: str) -> str:
    """Give a word that changes when a recipe does, but for what it says about itself."""
    value, _ = load(text, "recipe")
    told = {key: part for key, part in value.items() if key not in ("about", "purpose")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
