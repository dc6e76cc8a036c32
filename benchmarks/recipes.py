"""What do the shipped recipes move, and what does their training cost beside full fine-tuning?

    python benchmarks/recipes.py --data TABLE    # writes src/alloytune/recipe/shipped/costs.json

TABLE has columns `text` and `label`; 1,000 of its rows are used, such as those of `trec`. Floating-point operations are
counted, not timed, so that every machine finds the same; frozen layers that are kept count once, not in every epoch.
Recipes that have not changed since they were measured are passed over. Not counted: evaluations, and that patience may
end a stage early. Weights that take turns or join one after another are counted as in the middle of their stage; layers
that freeze once they have settled as if none did.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from quality import MODEL

COSTS = Path(__file__).parents[1] / "src" / "alloytune" / "recipe" / "shipped" / "costs.json"
ROWS = 1000


def main() -> None:
    """Measure what is new or has changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    from alloytune.models.load import quiet
    from alloytune.recipe.costs import fingerprint
    from alloytune.recipe.shipped import shipped_names, shipped_text

    quiet()
    known = json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.exists() else {}
    for name in shipped_names():
        word = fingerprint(shipped_text(name))
        if known.get(name, {}).get("fingerprint") != word:
            known[name] = {**measure(name, options.data), "fingerprint": word}
            print(f"{name:>20} {known[name]['trained_share']:.4f} {known[name]['relative_cost']:.3f}", flush=True)
        kept = {name: known[name] for name in shipped_names() if name in known}
        COSTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def measure(name: str, data: Path) -> dict[str, Any]:
    """Count a recipe's operations, and those of the recipe `full` on the same rows."""
    from alloytune.build.data import build_data_settings
    from alloytune.build.plan import build_updates
    from alloytune.build.session import build_session
    from alloytune.data.prepare import prepare
    from alloytune.estimate import estimate
    from alloytune.recipe.read import read_recipe
    from alloytune.train.range_test import SEARCH_SHARE

    given = {"model": MODEL, "data": {"train": str(data), "rows": ROWS}}
    recipe = read_recipe(name, (), given).recipe
    session = build_session(recipe, prepare(build_data_settings(recipe)))
    epochs = read_recipe("full").recipe.stages[0].until.epochs
    assert epochs is not None
    num_full = epochs * build_updates(session, 0, attempt=0).per_epoch * (1 + SEARCH_SHARE)
    stages = estimate(session).stages
    operations = sum(stage.flops for stage in stages)
    full = stages[0].full.flops
    operations += full * sum(batches_scored(recipe))
    return {
        "trained_share": round(max(stage.num_trained / stage.num_parameters for stage in stages), 6),
        "relative_cost": round(operations / (num_full * full), 4),
    }


def batches_scored(recipe: Any) -> Iterator[int]:
    """Give the batches whose gradients each stage measures; once, where it scores anew in later turns."""
    from alloytune.build.selections import scale, selections
    from alloytune.expression import choices_in, parse
    from alloytune.train.scores import OF_GRADIENTS

    for number, stage in enumerate(recipe.stages):
        texts = selections(stage, number).values()
        scores = {choice.score for text in texts for choice in choices_in(parse(text))} | {scale(stage)}
        yield stage.score.batches if scores & set(OF_GRADIENTS) else 0


if __name__ == "__main__":
    main()
