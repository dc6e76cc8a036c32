"""Carry out a recipe: data, stages, decisions, test, saving. A resumed run goes through the same code."""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from alloytune import build
from alloytune.build import Session
from alloytune.data.prepare import Dataset, prepare
from alloytune.data.store import load_splits, write_splits
from alloytune.errors import InputError, Interrupted
from alloytune.evaluate.bootstrap import intervals
from alloytune.evaluate.predict import predict, score
from alloytune.models.save import Places, save_tuned, verify_saved
from alloytune.models.source import fingerprint, locate
from alloytune.models.state import Snapshot
from alloytune.models.weights import free_only, named_weights
from alloytune.recipe.read import ReadRecipe, recipe_from, require_complete, resolved
from alloytune.recipe.types import Recipe, Stage
from alloytune.record.atomic import new_folder, write_text
from alloytune.record.environment import describe
from alloytune.record.folder import RunFolder, StageFolder, require_free
from alloytune.report.card import model_card
from alloytune.tasks.task import Scores
from alloytune.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from alloytune.train.loop import Step
from alloytune.train.moving import make_optimizer, optimizer_state, put_optimizer_state
from alloytune.train.stage import Progress, StageRun, run_stage
from alloytune.watch import Watcher

NUM_SHOWN = 5  # predictions shown at the end
NUM_VERIFIED = 32  # test rows whose outputs are compared after saving
PROGRESS_KEPT = 2  # checkpoints from within a stage: the newest, and the one before should that be damaged


def start(read: ReadRecipe, output: Path, watcher: Watcher, table: pl.DataFrame | None = None) -> RunFolder:
    """Begin a run in a new folder and carry it out; `table` takes the place of the recipe's training file.

    Input that cannot be used is refused before the first update, and no folder is left.
    """
    if table is None:
        require_complete(read)
    require_free(output)
    dataset = prepare(build.build_data_settings(read.recipe), table)
    environment = _environment(read.recipe)
    folder = RunFolder.create(output)
    try:
        write_text(folder.path / "recipe.yaml", read.text)
        folder.write("environment.json", environment)
        with new_folder(folder.data) as aside:
            write_splits(dataset, aside)
        folder.write("resolved.json", resolved(read.recipe))
        watcher.on_data(folder)
        return carry_out(folder, watcher)
    except InputError:
        if not folder.stages.exists():
            shutil.rmtree(folder.path)
        raise


def resume(path: Path, watcher: Watcher) -> RunFolder:
    """Go on with a run where it stopped; one that is finished is left as it is."""
    folder = RunFolder.open(path)
    if (path / "results.json").exists():
        return folder
    environment = folder.read("environment.json")
    torch.set_num_threads(environment["threads"])  # sums are taken in another order with another number
    _require_same_model(environment["model"])
    return carry_out(folder, watcher)


def carry_out(folder: RunFolder, watcher: Watcher) -> RunFolder:
    """Train every stage that is not finished yet, test the kept model, save it and prove that it loads."""
    recipe = recipe_from(folder.read("resolved.json"), source=str(folder.path / "resolved.json"))
    dataset = load_splits(folder.data)
    session = build.build_session(recipe, dataset)
    watcher.on_model(session)
    rehearse(session)
    with _stop_on_interrupt(folder) as stop_requested:
        scores = _replay(folder, session, _start_scores(folder, session))
        for number, stage in enumerate(recipe.stages):
            if folder.stage(number, stage.name).result() is None:
                scores = _Stage(folder, session, number, watcher, stop_requested).carry_out(scores)
    _finish(folder, session, dataset, watcher)
    return folder


def rehearse(session: Session) -> None:
    """Go through the stages without training, so that a selection that matches nothing is refused at once."""
    state = session.state
    for number, stage in enumerate(session.recipe.stages):
        if stage.merge and state.attachment is not None:
            state.take_off()  # a merge would leave the same names, and move weights
        attach(session, number)
        build.build_moving(session, number)
    if state.attachment is not None:
        state.take_off()


def _environment(recipe: Recipe) -> dict[str, Any]:
    """Describe what the run starts from."""
    data = recipe.data
    files = {"train": data.train, "validation": data.validation, "test": data.test}
    source = locate(recipe.model or "")
    return describe(
        {name: Path(file) for name, file in files.items() if file is not None},
        model={"source": source, "sha256": fingerprint(source)},
        threads=torch.get_num_threads(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class _Stage:
    """One stage of a run: its tries, its verdict, its record."""

    def __init__(
        self, folder: RunFolder, session: Session, number: int, watcher: Watcher, stop_requested: Callable[[], bool]
    ) -> None:
        self.session = session
        self.number = number
        self.stage: Stage = session.recipe.stages[number]
        self.folder: StageFolder = folder.stage(number, self.stage.name)
        self.run_folder = folder
        self.watcher = watcher
        self.stop_requested = stop_requested

    def carry_out(self, before: Scores) -> Scores:
        """Train the stage until it is kept or given up; give the scores of the model that remains."""
        num_retries, factor = build.retries(self.stage)
        checkpoint = self._newest_progress()
        first = checkpoint.state["attempt"] if checkpoint else 0
        for attempt in range(first, num_retries + 1):
            result, snapshot = self._try(attempt, factor**attempt, checkpoint, before)
            if result["decision"] == "kept":
                save_checkpoint(
                    self.folder.checkpoint, Checkpoint({"weights": self.session.state.touched_weights()}, {})
                )
                self._close(result)
                return Scores(**result["scores"])
            self.session.state.restore(snapshot)
            checkpoint = None
            if attempt < num_retries:
                self.watcher.on_retry(self.number, result)
        self._close(result)
        self._pass_over_later_stages()
        return before

    def _try(
        self, attempt: int, factor: float, checkpoint: Checkpoint | None, before: Scores
    ) -> tuple[dict[str, Any], Snapshot]:
        """Train once; give the result and the state from before it."""
        session, state = self.session, self.session.state
        untouched = state.snapshot(state.merge_targets() if self.stage.merge else frozenset())
        change_adapters(session, self.number)
        moving = build.build_moving(session, self.number).slower(factor)
        existing = moving.names & frozenset(named_weights(state.model)) - state.adapter_names
        # an adapter that was there before and trains on is part of what a rollback puts back
        if self.stage.attach is None:
            existing |= moving.names
        snapshot = Snapshot(
            untouched.attachment,
            untouched.touched,
            {**state.snapshot(existing - frozenset(untouched.weights)).weights, **untouched.weights},
        )
        state.touched |= moving.names
        free_only(state.model, moving.names)
        weights = named_weights(state.model)
        optimizer = make_optimizer(moving, weights)
        run = StageRun(state.model, optimizer, moving.names)
        progress = Progress()
        if checkpoint is not None:
            state.put(checkpoint.tensors["weights"])
            put_optimizer_state(optimizer, weights, dict(checkpoint.tensors["optimizer"]))
            run.best = dict(checkpoint.tensors.get("best", {}))
            progress = Progress.from_json(checkpoint.state["progress"])
        self.folder.forget_after(attempt, progress.update)
        updates = build.build_updates(session, self.number, attempt)
        plan = build.build_plan(session.recipe, self.number, attempt, updates.per_epoch)
        self.watcher.on_stage(self.number, self.stage, plan, progress)
        session.machine.reset_peak()
        progress = run_stage(
            run,
            updates,
            session.task.summed_loss,
            session.machine,
            plan,
            evaluate=partial(_validate, session),
            save=partial(self._save_progress, run, attempt),
            watcher=_StageRecord(self.folder, attempt, self.watcher),
            stop_requested=self.stop_requested,
            progress=progress,
        )
        return self._result(attempt, moving.names, progress, before), snapshot

    def _result(self, attempt: int, names: frozenset[str], progress: Progress, before: Scores) -> dict[str, Any]:
        assert progress.best is not None
        kept, reason = _verdict(self.stage, self.session.recipe.metric, before, progress.best)
        shapes = self.session.state.roles().shapes
        num_trained = sum(int(np.prod(shapes[name])) for name in names)
        num_all = sum(int(np.prod(shape)) for shape in shapes.values())
        return {
            "name": self.stage.name,
            "decision": "kept" if kept else "rolled back",
            "reason": reason,
            "tries": attempt + 1,
            "trained_parameters": num_trained,
            "parameters": num_all,
            "updates": progress.update,
            "best_update": progress.best_update,
            "seconds": round(progress.seconds, 2),
            "tokens_per_second": round(progress.num_tokens / max(progress.seconds, 1e-9), 1),
            "peak_memory_bytes": self.session.machine.peak_bytes(),
            "scores": asdict(progress.best),
            "change": {metric: value - before.values[metric] for metric, value in progress.best.values.items()},
        }

    def _close(self, result: Mapping[str, Any]) -> None:
        """Write the result, after which a resume passes over this stage, and tidy up."""
        self.folder.write_result(result)
        for progress in self.folder.progress_folders():
            _remove(progress)
        self.watcher.on_stage_end(self.number, result)

    def _pass_over_later_stages(self) -> None:
        stages = self.session.recipe.stages
        last = {"skip": self.number + 2, "stop": len(stages)}.get(str(self.stage.otherwise), 0)
        for number in range(self.number + 1, min(last, len(stages))):
            name = stages[number].name
            result = {
                "name": name,
                "decision": "not run",
                "reason": f"stage {self.stage.name} was not accepted (otherwise: {self.stage.otherwise})",
            }
            self.run_folder.stage(number, name).write_result(result)
            self.watcher.on_stage_end(number, result)

    def _save_progress(self, run: StageRun, attempt: int, progress: Progress) -> None:
        tensors = {
            "weights": self.session.state.touched_weights(),
            "optimizer": optimizer_state(run.optimizer, named_weights(run.model)),
        }
        if run.best:
            tensors["best"] = run.best
        state = {"attempt": attempt, "progress": progress.to_json()}
        save_checkpoint(self.folder.progress_folder(attempt, progress.update), Checkpoint(tensors, state))
        for outdated in self.folder.progress_folders()[PROGRESS_KEPT:]:
            _remove(outdated)

    def _newest_progress(self) -> Checkpoint | None:
        for path in self.folder.progress_folders():
            if checkpoint := load_checkpoint(path):
                return checkpoint
        return None


class _StageRecord:
    """Writes a stage's steps and scores into the run folder, and passes them on."""

    def __init__(self, folder: StageFolder, attempt: int, watcher: Watcher) -> None:
        self._folder = folder
        self._attempt = attempt
        self._watcher = watcher

    def on_step(self, step: Step, progress: Progress) -> None:
        """Note a finished update."""
        self._folder.append("steps", {"attempt": self._attempt, **asdict(step), "seconds": round(progress.seconds, 4)})
        self._watcher.on_step(step, progress)

    def on_scores(self, scores: Scores, progress: Progress) -> None:
        """Note an evaluation."""
        row = {"attempt": self._attempt, "update": progress.update, "best_update": progress.best_update}
        self._folder.append("scores", {**row, **scores.values})
        self._watcher.on_scores(scores, progress)


def change_adapters(session: Session, number: int) -> None:
    """Carry out a stage's `merge` and `attach`."""
    if session.recipe.stages[number].merge and session.state.attachment is not None:
        session.state.merge()  # none is there when the stage that attached it was rolled back
    attach(session, number)


def attach(session: Session, number: int) -> None:
    """Attach the adapter that a stage adds, if any."""
    attachment = build.build_attachment(session, number)
    if attachment is not None:
        session.state.attach(attachment, f"stages[{number}].attach")


def _verdict(stage: Stage, metric: str, before: Scores, after: Scores) -> tuple[bool, str]:
    """Decide whether a stage is kept, and say why."""
    if stage.accept is None:
        return True, "always kept"
    metric = stage.accept.metric or metric
    gain = after.values[metric] - before.values[metric]
    kept = gain >= stage.accept.gain
    return kept, f"{metric} {gain:+.4f}, asked for at least {stage.accept.gain:+g}"


def _validate(session: Session) -> Scores:
    examples = session.examples["validation"]
    return score(session.state.model, session.task, examples, session.tokenizer, session.machine)


def _start_scores(folder: RunFolder, session: Session) -> Scores:
    """Score the model as it came, head untrained: what the first stage is compared with."""
    if (folder.stages / "start.json").exists():
        return Scores(**folder.read("stages/start.json"))
    scores = _validate(session)
    folder.stages.mkdir(exist_ok=True)
    folder.write("stages/start.json", asdict(scores))
    return scores


def _replay(folder: RunFolder, session: Session, scores: Scores) -> Scores:
    """Bring the model to where the finished stages left it; give its scores."""
    newest: StageFolder | None = None
    for number, stage in enumerate(session.recipe.stages):
        stage_folder = folder.stage(number, stage.name)
        result = stage_folder.result()
        if result is None or result["decision"] != "kept":
            continue
        change_adapters(session, number)
        newest, scores = stage_folder, Scores(**result["scores"])
    if newest is not None:
        checkpoint = load_checkpoint(newest.checkpoint)
        if checkpoint is None:
            raise InputError(
                str(newest.checkpoint),
                "the checkpoint is damaged",
                f"delete {newest.path}, then resume: it trains anew",
            )
        session.state.put(checkpoint.tensors["weights"])
        session.state.touched = frozenset(checkpoint.tensors["weights"])
    return scores


def _finish(folder: RunFolder, session: Session, dataset: Dataset, watcher: Watcher) -> None:
    """Test the kept model once, save it, load it again in a fresh process, and write the results."""
    state, task, tokenizer = session.state, session.task, session.tokenizer
    watcher.on_finish("testing")
    test = session.examples["test"]
    exact = session.machine.exact()  # the scores are those of the saved model as others load it
    outputs = predict(state.model, task, test, tokenizer, exact)
    targets = np.array([example.target for example in test])
    scores = task.scores(outputs, targets)
    spans = intervals(outputs.argmax(axis=1), targets, len(dataset.labels), session.recipe.seed)
    results = {
        "recipe": folder.read("resolved.json"),
        "model": session.source,
        "labels": list(dataset.labels),
        "parameters": sum(weight.numel() for weight in named_weights(state.model).values()),
        "precision": str(session.machine.precision).removeprefix("torch."),
        "device": str(session.machine.device),
        "rows": {split: len(examples) for split, examples in session.examples.items()},
        "rows_cut": dict(session.num_cut),
        "max_length": session.max_length,
        "start": folder.read("stages/start.json"),
        "stages": [folder.stage(n, stage.name).result() for n, stage in enumerate(session.recipe.stages)],
        "test": {
            "rows": len(test),
            "values": scores.values,
            "intervals": {metric: list(span) for metric, span in spans.items()},
            "details": scores.details,
        },
        "predictions": _shown_predictions(dataset, outputs),
    }
    watcher.on_finish("saving")
    chosen = test[:NUM_VERIFIED]
    batch = task.collate(chosen, tokenizer)
    card = model_card(results)
    places = Places(session.source, folder.model, folder.adapter, folder.base)
    expected = predict(state.model, task, chosen, tokenizer, exact)
    saved = save_tuned(state, tokenizer, places, card)
    watcher.on_finish("loading what was saved in a fresh process")
    written = {name: getattr(folder, name) for name, is_there in saved.items() if is_there}
    inputs = {key: value.tolist() for key, value in batch.inputs.items()}
    results["saved"] = sorted(written)
    results["reload_difference"] = verify_saved(written, session.source, inputs, expected, task.config)
    folder.write("results.json", results)
    watcher.on_end(folder)


def _shown_predictions(dataset: Dataset, outputs: np.ndarray) -> list[dict[str, Any]]:
    chances = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    return [
        {
            "text": row["text"],
            "label": row["label"],
            "predicted": dataset.labels[int(chances[n].argmax())],
            "probability": float(chances[n].max()),
        }
        for n, row in enumerate(dataset.test.head(NUM_SHOWN).iter_rows(named=True))
    ]


@contextmanager
def _stop_on_interrupt(folder: RunFolder) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to save and stop; a second one stops at once."""
    requested = threading.Event()

    def request(number: int, _frame: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; go on with: alloytune train --resume {folder.path}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_same_model(known: Mapping[str, Any]) -> None:
    if known["sha256"] is not None and fingerprint(known["source"]) != known["sha256"]:
        raise InputError(
            "model", f"{known['source']!r} has changed since the run began", "put it back, or start a new run"
        )


def _remove(path: Path) -> None:
    """Remove a checkpoint; its manifest first, so that a kill in between leaves none that looks whole."""
    (path / "manifest.json").unlink(missing_ok=True)
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
