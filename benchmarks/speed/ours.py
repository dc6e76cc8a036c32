"""The project's side of a case, by its public call; and what the case costs in operations."""

from pathlib import Path
from typing import Any

from cases import SEED, Case, recipe_for
from meter import held_bytes, peak_bytes, seconds_since_start, warm_up

COLUMNS = ("train", "validation", "test")


def split_rows(case: Case, source: str, table: Path, folder: Path, rows: int) -> None:
    """Clean a table and cut so many rows from it as this project does, once for all contenders."""
    from alloytune.build.data import build_data_settings
    from alloytune.data.prepare import prepare
    from alloytune.data.store import write_splits
    from alloytune.recipe.read import recipe_read

    given = {"model": source, "seed": SEED, "data": {"train": str(table), "rows": rows}}
    dataset = prepare(build_data_settings(recipe_read(recipe_for(case), (), given).recipe))
    write_splits(dataset, folder)


def fine_tune(case: Case, source: str, splits: Path, scratch: Path) -> dict[str, Any]:
    """Carry out a case's recipe on the rows that were cut."""
    import alloytune
    from alloytune.watch import Watcher

    class Started(Watcher):
        seconds: float | None = None
        held = 0

        def on_model(self, *_: object) -> None:
            self.held = held_bytes()

        def on_stage(self, *_: object) -> None:
            self.seconds = self.seconds or seconds_since_start()

    warm_up()
    watcher, files = Started(), {split: str(splits / f"{split}.parquet") for split in COLUMNS}
    tuned = alloytune.tune(
        files.pop("train"), source, recipe_for(case), output=scratch / "run", seed=SEED, watcher=watcher, **files
    )
    stages = tuned.results["stages"]
    seconds = sum(stage["seconds"] for stage in stages)
    return {
        "seconds": seconds,
        "whole_seconds": seconds_since_start(),
        "start_seconds": watcher.seconds,
        "tokens_per_second": sum(stage["tokens_per_second"] * stage["seconds"] for stage in stages) / seconds,
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in stages),
        "held_before_bytes": watcher.held,
        "stage_seconds": [stage["seconds"] for stage in stages],
        "trained_parameters": [stage["trained_parameters"] for stage in stages],
        "scores": {name: tuned.scores[name] for name in ("accuracy", "loss") if name in tuned.scores},
        "rows": tuned.results["rows"],
        "precision": tuned.results["precision"],
    }


def tokenize(case: Case, source: str, splits: Path, split: str) -> list[dict[str, list[int]]]:
    """Give the tokens and labels of a split of texts to write, so that peers learn the very same tokens."""
    import polars as pl

    from alloytune.build.session import fit
    from alloytune.models.load import load_tokenizer
    from alloytune.tasks.task import find_task

    table = pl.read_parquet(splits / f"{split}.parquet")
    task = fit(find_task("generation").learn(recipe_for(case)["task"]["generation"], table), source)
    examples = task.encode(table, load_tokenizer(source), case.max_length).examples
    # A reply's targets stand one place before the tokens; transformers moves labels itself.
    return [{**example.inputs, "labels": [-100, *example.target.targets[:-1]]} for example in examples]


def count(case: Case, source: str, splits: Path, scratch: Path) -> dict[str, Any]:
    """Count the operations of a case, in all that its epochs take.

    They are those of matrix products and attention on a batch of real rows, by token, times the tokens trained on.
    `all` is what plain training of these weights takes: forward, backward to the lowest weight that moves, and the
    gradients of what moves. `least` runs what lies below that weight once and not in every epoch: a frozen layer's
    part of a forward pass is a third of full training's operations times its share of the layers.
    """
    from alloytune.build.data import build_data_settings
    from alloytune.build.session import build_session
    from alloytune.data.prepare import prepare
    from alloytune.models.weights import free_only, named_weights
    from alloytune.recipe.read import recipe_read
    from alloytune.stages.stage import begin_stage
    from alloytune.train.flops import count_flops

    files = {split: str(splits / f"{split}.parquet") for split in COLUMNS}
    read = recipe_read(recipe_for(case), (), {"model": source, "seed": SEED, "data": files})
    session = build_session(read.recipe, prepare(build_data_settings(read.recipe)))
    examples, model, loss = session.examples["train"], session.state.model, session.task.summed_loss
    batch = session.task.collate(list(examples[: case.batch]), session.tokenizer)
    # packed rows hold no padding to speak of, padded ones compute it
    in_batch = batch.num_tokens if case.is_writing else batch.inputs["input_ids"].numel()
    free_only(model, frozenset(named_weights(model)))
    full = count_flops(model, [batch], loss, session.machine) / in_batch
    tokens = sum(example.num_tokens for example in examples)
    every = least = 0.0
    for number, stage in enumerate(case.stages):
        begin_stage(session, number)
        own = count_flops(model if number == 0 else session.state.model, [batch], loss, session.machine) / in_batch
        saved = full / 3 * case.share_frozen(stage) * (stage.epochs - 1)
        every += own * tokens * stage.epochs
        least += (own * stage.epochs - saved) * tokens
    return {"all": every, "least": least, "full_per_token": full, "tokens": tokens, "memory": peak_bytes()}
