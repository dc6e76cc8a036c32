"""The end of a run: test the kept model once, save it, prove that it loads, write the results."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from scipy.special import softmax

from alloytune.build import Session
from alloytune.data.prepare import Dataset
from alloytune.evaluate.judge import score_with_intervals
from alloytune.evaluate.predict import predict
from alloytune.models.save import Places, save_tuned, verify_saved
from alloytune.models.weights import named_weights
from alloytune.record.folder import RunFolder, StageFolder
from alloytune.report.card import model_card
from alloytune.watch import Watcher

NUM_SHOWN = 5  # predictions shown at the end
NUM_VERIFIED = 32  # rows whose outputs are compared after saving


def finish(folder: RunFolder, session: Session, dataset: Dataset, watcher: Watcher) -> None:
    """Test, save, load again in a fresh process, and write `results.json`: after that the run is complete."""
    watcher.on_finish("testing")
    results = _results(folder, session)
    if session.examples["test"]:
        outputs = _outputs(session, "test")
        results["test"] = score_with_intervals(session.task, outputs, session.examples["test"], session.recipe.seed)
        results["predictions"] = _shown_predictions(dataset, outputs)
    watcher.on_finish("saving, and loading what was saved in a fresh process")
    split = "test" if session.examples["test"] else "validation"
    chosen = session.examples[split][:NUM_VERIFIED]
    batch = session.task.collate(chosen, session.tokenizer)
    expected = _outputs(session, split, NUM_VERIFIED)
    places = Places(session.source, folder.model, folder.adapter, folder.base)
    results["adapters"] = [attachment.name for attachment in session.state.attachments]
    saved = save_tuned(session.state, session.tokenizer, places, partial(model_card, results))
    written = {name: getattr(folder, name) for name, is_there in saved.items() if is_there}
    inputs = {key: value.tolist() for key, value in batch.inputs.items()}
    results["saved"] = sorted(written)
    results["reload_difference"] = verify_saved(
        written, results["adapters"], session.source, inputs, expected, session.task.config
    )
    folder.write("results.json", results)
    watcher.on_end(folder)


def _results(folder: RunFolder, session: Session) -> dict[str, Any]:
    """Give what is known before the test."""
    stages = session.recipe.stages
    return {
        "recipe": folder.read("resolved.json"),
        "model": session.source,
        "labels": list(session.task.config["id2label"].values()),
        "parameters": sum(weight.numel() for weight in named_weights(session.state.model).values()),
        "precision": str(session.machine.precision).removeprefix("torch."),
        "device": str(session.machine.device),
        "rows": {split: len(examples) for split, examples in session.examples.items()},
        "rows_cut": dict(session.num_cut),
        "max_length": session.max_length,
        "start": _without_predicted(folder.read("stages/start.json")),
        "stages": [_result(folder.stage(number, stage.name)) for number, stage in enumerate(stages)],
        "test": None,
        "predictions": [],
    }


def _result(stage: StageFolder) -> dict[str, Any]:
    result = stage.result() or {}
    return result | {"scores": _without_predicted(result["scores"])} if "scores" in result else result


def _without_predicted(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the answers to single rows to the stage's own record."""
    return {key: value for key, value in scores.items() if key != "predicted"}


def _outputs(session: Session, split: str, rows: int | None = None) -> np.ndarray:
    """Give outputs in float32: the scores are those of the saved model as others load it."""
    examples = session.examples[split][:rows]
    return predict(session.state.model, session.task, examples, session.tokenizer, session.machine.exact())


def _shown_predictions(dataset: Dataset, outputs: np.ndarray) -> list[dict[str, Any]]:
    chances = softmax(outputs[:NUM_SHOWN], axis=1)
    return [
        {
            "text": row["text"],
            "label": row["label"],
            "predicted": dataset.labels[int(chances[n].argmax())],
            "probability": float(chances[n].max()),
        }
        for n, row in enumerate(dataset.test.head(NUM_SHOWN).iter_rows(named=True))
    ]
