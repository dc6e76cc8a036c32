"""The end of a run: test the kept model once, save it, prove that it loads, write the results."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from alloytune.build.session import Session
from alloytune.data.prepare import Dataset
from alloytune.evaluate.judge import score_with_intervals
from alloytune.evaluate.predict import few_to_compare, predict, raw_outputs
from alloytune.learning import Learning
from alloytune.models import verify
from alloytune.models.heads import MAIN
from alloytune.models.save import Places, save_tuned
from alloytune.models.weights import named_weights
from alloytune.record.folder import RunFolder, StageFolder
from alloytune.report.card import model_card
from alloytune.stages.attaching import return_home
from alloytune.tasks.abilities import WritesFiles
from alloytune.tasks.task import Task
from alloytune.watch import Watcher

WRITING = ("text-generation", "translation", "summarization")  # pipelines that need room behind what they read
NUM_SHOWN = 5  # predictions shown at the end


def finish(folder: RunFolder, session: Session, dataset: Dataset, watcher: Watcher) -> None:
    """Test, save, load again in a fresh process, and write `results.json`: after that the run is complete."""
    with verify.fresh_process() as load:
        watcher.on_finish("testing")
        return_home(session)
        session.change(task=_tuned(session))
        results = _results(folder, session) | _tested(session, dataset)
        watcher.on_finish("saving, and loading what was saved in a fresh process")
        results |= _saved(folder, session, results, load)
    folder.write("results.json", results)
    watcher.on_end(folder)


def _tested(session: Session, dataset: Dataset) -> dict[str, Any]:
    """Give the scores of the test split, where there is one, and some of its rows with what the model answers."""
    examples = session.examples["test"]
    if not examples:
        return {}
    answers = _answers(session, "test")
    return {
        "test": score_with_intervals(session.task, answers, examples, session.recipe.seed),
        "predictions": _shown_predictions(session, dataset, answers),
    }


def _saved(folder: RunFolder, session: Session, results: Mapping[str, Any], load: verify.Loader) -> dict[str, Any]:
    """Save the model and have it loaded again; give what was saved, and how far the outputs differ then."""
    task = session.task
    split = "test" if session.examples["test"] else "validation"
    batch = task.collate(few_to_compare(session.examples[split]), session.tokenizer)
    expected = raw_outputs(session.state.model, batch, session.machine.exact())
    auto_class = task.auto_class.__name__
    more = partial(task.write_files, max_length=session.max_length) if isinstance(task, WritesFiles) else None
    places = Places(session.source, folder.model, folder.adapter, folder.base, auto_class, more)
    names = [attachment.name for attachment in session.state.attachments]
    if session.max_length and task.pipeline not in WRITING:
        session.tokenizer.model_max_length = session.max_length  # texts are read up to there by others, too
    if task.tunes:
        session.state.model.config.update(task.config)
    facts = {**results, "adapters": names}
    saved = save_tuned(session.state, session.tokenizer, places, partial(model_card, facts))
    written = {name: getattr(folder, name) for name, is_there in saved.items() if is_there}
    inputs = {key: value.tolist() for key, value in batch.inputs.items()}
    differences = verify.verify_saved(load, written, names, session.source, inputs, expected, task.config, auto_class)
    return {"adapters": names, "saved": sorted(written), "reload_difference": differences}


def _tuned(session: Session) -> Task:
    """Choose on validation, for the kept model, what the task does not train."""
    if not session.task.tunes:
        return session.task
    return session.task.tuned(_answers(session, "validation"), session.examples["validation"])


def _results(folder: RunFolder, session: Session) -> dict[str, Any]:
    """Give what is known before the test."""
    stages = session.recipe.stages
    return {
        "recipe": folder.read("resolved.json"),
        "model": session.source,
        "learned": session.task.learned,
        "pipeline": session.task.pipeline,
        "parameters": sum(weight.numel() for weight in named_weights(session.state.model).values()),
        "precision": str(session.machine.precision).removeprefix("torch."),
        "device": str(session.machine.device),
        "rows": {split: len(examples) for split, examples in session.examples.items()},
        "rows_cut": dict(session.learning.num_cut),
        "rows_left_out": dict(session.learning.left_out),
        "beside": {name: _beside(learning) for name, learning in session.learnings.items() if name != MAIN},
        "max_length": session.max_length,
        "start": _without_figures(folder.read("stages/start.json")),
        "stages": [_result(folder.stage(number, stage.name)) for number, stage in enumerate(stages)],
        "test": None,
        "predictions": [],
    }


def _beside(learning: Learning) -> dict[str, Any]:
    """Say how many rows stages have read that learn something else."""
    rows = {split: len(examples) for split, examples in learning.examples.items()}
    return {"rows": rows, "rows_cut": dict(learning.num_cut), "rows_left_out": dict(learning.left_out)}


def _result(stage: StageFolder) -> dict[str, Any]:
    result = stage.result() or {}
    return result | {"scores": _without_figures(result["scores"])} if "scores" in result else result


def _without_figures(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the figures of single rows to the stage's own record."""
    return {key: value for key, value in scores.items() if key != "figures"}


def _answers(session: Session, split: str) -> list[Any]:
    """Give answers in float32: the scores are those of the saved model as others load it."""
    examples = session.examples[split]
    return predict(session.state.model, session.task, examples, session.tokenizer, session.machine.exact())


def _shown_predictions(session: Session, dataset: Dataset, answers: Sequence[Any]) -> list[dict[str, Any]]:
    """Give the first test rows with what the model answers; the first column of its table is called `predicted`."""
    examples = session.examples["test"][:NUM_SHOWN]
    table = session.task.table(answers[:NUM_SHOWN], examples)
    rows = dataset.test.filter(pl.col("row").is_in([example.row for example in examples])).drop("row")
    first, *others = (name for name in table.columns if not name.startswith("probability_"))
    return [
        row | {"predicted": answer[first]} | {name: answer[name] for name in others}
        for row, answer in zip(rows.to_dicts(), table.to_dicts(), strict=True)
    ]
