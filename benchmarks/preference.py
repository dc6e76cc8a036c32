"""What DPO does to a chat model: preferences on held-out pairs before and after.

    python benchmarks/preference.py --model MODEL --data dpo_en_demo.json --output RUN [--rows N] [--max-length N]

MODEL is a decoder with a chat template, such as SmolLM2-135M-Instruct; the data are LLaMA-Factory's sample of
preferences (`conversations`, `chosen`, `rejected`). Prints one line of JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from alloytune import tune


def main() -> None:
    """Train on a part of the pairs and score the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--layers", default="all")
    options = parser.parse_args()
    pairs = json.loads(options.data.read_text(encoding="utf-8"))[: options.rows]
    table = [{**pair, "prompt": pair["conversations"]} for pair in pairs]
    tuned = tune(table, options.model, recipe(options.max_length, options.layers), output=options.output)
    before, after = tuned.results["start"]["values"], tuned.results["stages"][-1]["scores"]["values"]
    seconds = sum(stage["seconds"] for stage in tuned.results["stages"])
    rows = tuned.results["rows"]
    print(json.dumps({"before": before, "after": after, "test": tuned.scores, "rows": rows, "seconds": seconds}))


def recipe(max_length: int, layers: str) -> dict[str, Any]:
    """Give the recipe: LoRA, one pass."""
    stage = {
        "name": "dpo",
        "attach": {
            "lora": {"rank": 8, "on": "attention | mlp" if layers == "all" else f"{layers} & (attention | mlp)"}
        },
        "train": "adapter",
        "rate": 3e-4,
        "until": {"epochs": 1},
        "keep": "last",
    }
    return {
        "task": {"preference": {"beta": 0.1}},
        "data": {"split": {"validation": 0.2, "test": 0.2}},
        "batch": 8,
        "micro_batch": 2,
        "max_length": max_length,
        "stages": [stage],
    }


if __name__ == "__main__":
    main()
