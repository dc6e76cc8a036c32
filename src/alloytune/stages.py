"""One stage of a run: its tries, its verdict, its record."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from math import prod
from typing import Any

from alloytune import build
from alloytune.build import Session
from alloytune.evaluate.predict import score
from alloytune.models.state import Snapshot
from alloytune.models.weights import free_only, named_weights
from alloytune.recipe.types import Stage
from alloytune.record.folder import RunFolder, StageFolder
from alloytune.tasks.task import Scores
from alloytune.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from alloytune.train.loop import Step
from alloytune.train.moving import Moving, make_optimizer, optimizer_state, put_optimizer_state
from alloytune.train.stage import Progress, StageRun, run_stage
from alloytune.watch import Watcher

PROGRESS_KEPT = 2  # checkpoints from within a stage: the newest, and the one before should that be damaged


class StageOfRun:
    """One stage, from its first try to its verdict."""

    def __init__(
        self, folder: RunFolder, session: Session, number: int, watcher: Watcher, stop_requested: Callable[[], bool]
    ) -> None:
        self.session = session
        self.number = number
        self.stage: Stage = session.recipe.stages[number]
        self.run_folder = folder
        self.folder: StageFolder = folder.stage(number, self.stage.name)
        self.watcher = watcher
        self.stop_requested = stop_requested

    def carry_out(self, before: Scores) -> Scores:
        """Train the stage until it is kept or given up; give the scores of the model that remains."""
        num_retries, factor = build.retries(self.stage)
        checkpoint = self._newest_progress()
        first = checkpoint.state["attempt"] if checkpoint else 0
        for attempt in range(first, num_retries + 1):
            moving, snapshot = self._prepare(factor**attempt)
            progress = self._train(attempt, moving, checkpoint)
            result = self._result(attempt, moving, progress, before)
            if result["decision"] == "kept":
                weights = self.session.state.touched_weights()
                save_checkpoint(self.folder.checkpoint, Checkpoint({"weights": weights}, {}))
                self._close(result)
                return Scores(**result["scores"])
            self.session.state.restore(snapshot)
            checkpoint = None
            if attempt < num_retries:
                self.watcher.on_retry(self.number, result)
        self._pass_over(result)
        return before

    def _prepare(self, factor: float) -> tuple[Moving, Snapshot]:
        """Merge and attach, and free what moves; give that, and the way back to before."""
        state = self.session.state
        by_merging = state.snapshot(state.merge_targets() if self.stage.merge else frozenset())
        old = frozenset(named_weights(state.model))
        moving = begin_stage(self.session, self.number).slower(factor)
        by_training = state.snapshot((moving.names & old) - frozenset(by_merging.weights))
        snapshot = Snapshot(by_merging.attachment, by_merging.touched, {**by_training.weights, **by_merging.weights})
        return moving, snapshot

    def _train(self, attempt: int, moving: Moving, checkpoint: Checkpoint | None) -> Progress:
        """Train once, or go on from a checkpoint, and leave the kept weights in the model."""
        session, state = self.session, self.session.state
        weights = named_weights(state.model)
        run = StageRun(state.model, make_optimizer(moving, weights), moving.names)
        progress = Progress()
        if checkpoint is not None:
            state.put(checkpoint.tensors["weights"])
            put_optimizer_state(run.optimizer, weights, checkpoint.tensors["optimizer"])
            run.best = dict(checkpoint.tensors.get("best", {}))
            progress = Progress.from_json(checkpoint.state["progress"])
        self.folder.forget_after(attempt, progress.update)
        updates = build.build_updates(session, self.number, attempt)
        plan = build.build_plan(session.recipe, self.number, attempt, updates.per_epoch)
        self.watcher.on_stage(self.number, self.stage, moving, plan, progress)
        session.machine.reset_peak()
        return run_stage(
            run,
            updates,
            session.task.summed_loss,
            session.machine,
            plan,
            evaluate=partial(validate, session),
            save=partial(self._save_progress, run, attempt),
            watcher=_StageRecord(self.folder, attempt, self.watcher),
            stop_requested=self.stop_requested,
            progress=progress,
        )

    def _result(self, attempt: int, moving: Moving, progress: Progress, before: Scores) -> dict[str, Any]:
        scores = progress.best if self.stage.keep == "best" else progress.last
        assert scores is not None
        kept, reason = _verdict(self.stage, self.session.recipe.metric, before, scores)
        shapes = self.session.state.roles().shapes
        return {
            "name": self.stage.name,
            "decision": "kept" if kept else "rolled back",
            "reason": reason,
            "tries": attempt + 1,
            "trained_parameters": sum(prod(shapes[name]) for name in moving.names),
            "parameters": sum(map(prod, shapes.values())),
            "rates": moving.rates,
            "updates": progress.update,
            "best_update": progress.best_update,
            "seconds": round(progress.seconds, 2),
            "tokens_per_second": round(progress.num_tokens / max(progress.seconds, 1e-9), 1),
            "peak_memory_bytes": self.session.machine.peak_bytes(),
            "scores": asdict(scores),
            "change": {metric: value - before.values[metric] for metric, value in scores.values.items()},
        }

    def _close(self, result: Mapping[str, Any]) -> None:
        """Write the result, after which a resume passes over this stage, and tidy up."""
        self.folder.write_result(result)
        self.folder.tidy()
        self.watcher.on_stage_end(self.number, result)

    def _pass_over(self, result: Mapping[str, Any]) -> None:
        """Close a stage that was not accepted, and with it the later ones that `skip` and `stop` leave out.

        Their results come first: a resume passes over this stage as soon as it has one of its own.
        """
        stages = self.session.recipe.stages
        last = {"skip": self.number + 2, "stop": len(stages)}.get(str(self.stage.otherwise), 0)
        reason = f"stage {self.stage.name} was not accepted (otherwise: {self.stage.otherwise})"
        left_out = {
            number: {"name": stages[number].name, "decision": "not run", "reason": reason}
            for number in range(self.number + 1, min(last, len(stages)))
        }
        for number, its_result in left_out.items():
            self.run_folder.stage(number, stages[number].name).write_result(its_result)
        self._close(result)
        for number, its_result in left_out.items():
            self.watcher.on_stage_end(number, its_result)

    def _save_progress(self, run: StageRun, attempt: int, progress: Progress) -> None:
        tensors = {
            "weights": self.session.state.touched_weights(),
            "optimizer": optimizer_state(run.optimizer, named_weights(run.model)),
        }
        if run.best:
            tensors["best"] = run.best
        state = {"attempt": attempt, "progress": progress.to_json()}
        save_checkpoint(self.folder.progress_folder(attempt, progress.update), Checkpoint(tensors, state))
        self.folder.tidy(PROGRESS_KEPT)

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


def begin_stage(session: Session, number: int) -> Moving:
    """Merge, attach and free what a stage moves; give it."""
    change_adapters(session, number)
    moving = build.build_moving(session, number)
    session.state.touched |= moving.names
    free_only(session.state.model, moving.names)
    return moving


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


def validate(session: Session) -> Scores:
    """Score the model as it is on the validation split."""
    examples = session.examples["validation"]
    return score(session.state.model, session.task, examples, session.tokenizer, session.machine)


def _verdict(stage: Stage, metric: str, before: Scores, after: Scores) -> tuple[bool, str]:
    """Decide whether a stage is kept, and say why."""
    if stage.accept is None:
        return True, "always kept"
    metric = stage.accept.metric or metric
    gain = after.values[metric] - before.values[metric]
    kept = gain >= stage.accept.gain
    return kept, f"needed {metric} {stage.accept.gain:+g} or more, got {gain:+.4f}"
