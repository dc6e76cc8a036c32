"""One stage of a run: its tries, its verdict, its record."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

from alloytune.build.caching import cache_facts, make_reader
from alloytune.build.joint import joint_facts, make_evaluation, make_training_loss
from alloytune.build.moving import build_moving
from alloytune.build.pace import in_training_form, make_stage_optimizer
from alloytune.build.plan import build_plan, build_updates, retries
from alloytune.build.session import Session
from alloytune.errors import InputError, Interrupted
from alloytune.evaluate.predict import score
from alloytune.learning import Reached
from alloytune.models.state import Snapshot
from alloytune.models.weights import Weights, free_only, named_weights
from alloytune.recipe.read import resolved
from alloytune.recipe.types.choosing import ByTurns
from alloytune.recipe.types.stage import Stage, leaves_rates_open, may_be_lost
from alloytune.record.decisions import Decision
from alloytune.record.folder import RunFolder, StageFolder
from alloytune.stages.anchoring import anchor
from alloytune.stages.attaching import attach_adapters, enter_stage, reinit_names, reinit_weights, weights_at_stake
from alloytune.stages.course import make_course, make_turns
from alloytune.stages.measures import Measures, measure_stage
from alloytune.stages.rate_search import find_rates, num_searching, settle, starting_rates
from alloytune.stages.snapshots import combine_snapshots, kept_checkpoint, kept_stages, names_combined, weights_after
from alloytune.stages.verdict import BROKEN, is_broken, judge
from alloytune.tasks.task import Scores
from alloytune.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from alloytune.train.loop import Step
from alloytune.train.memory import OptimizerState, optimizer_state, put_optimizer_state
from alloytune.train.moving import Moving
from alloytune.train.prefix_reader import PrefixReader
from alloytune.train.stage import Progress, StageRun, run_stage
from alloytune.train.turns import Course, Turn
from alloytune.watch import Watcher

MENDS = 2  # new tries, where rates that were found broke the model
PROGRESS_KEPT = 2  # checkpoints from within a stage: the newest, and the one before should that be damaged


@dataclass(frozen=True)
class Begun:
    """What a try of a stage begins with: what moves when, the way back, and what is kept of frozen layers."""

    moving: Moving
    course: Course
    way_back: Snapshot
    before: Scores  # of the model that it began with, in what it learns
    combined: frozenset[str]  # the weights that `combine` is about
    reader: PrefixReader  # of what its frozen layers give
    not_kept: str | None  # why nothing is kept of that


@dataclass(frozen=True)
class Trained:
    """What training left beside the weights: nothing, where a stage only combines.

    `memory` is the optimizer's, as `optimizer`, where a later stage may keep it; `joint` tells what a joint objective
    came to.
    """

    progress: Progress = field(default_factory=Progress)
    memory: Mapping[str, OptimizerState] = field(default_factory=dict)
    joint: Mapping[str, Any] = field(default_factory=dict)


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

    def carry_out(self, before: Reached) -> Reached:
        """Train the stage until it is kept or given up; give the scores of the model that remains."""
        num_retries, factor = retries(self.stage)
        num_tries = 1 + (max(num_retries, MENDS) if self._finds_rates() else num_retries)
        learning = self.session.recipe.learning_of(self.number)
        known = before.scores if before.learning == learning else None
        checkpoint = self._newest_progress()
        first = checkpoint.state["attempt"] if checkpoint else 0
        for attempt in range(first, num_tries):
            begun = self._begin(factor**attempt, known)
            trained = self._train(attempt, begun, checkpoint) if begun.moving.groups else Trained()
            scores, shares = self._combine(begun, trained.progress)
            may_mend = is_broken(begun.before, scores) and attempt + 1 < num_tries
            result = self._result(attempt, begun, trained, scores, may_mend=may_mend) | shares
            if result["decision"] == Decision.KEPT:
                tensors = {"weights": self.session.state.touched_weights(), **trained.memory}
                state = {"optimizer": asdict(begun.moving.optimizer)}
                save_checkpoint(self.folder.checkpoint, Checkpoint(tensors, state))
                self._close(result)
                return Reached(learning, Scores(**result["scores"]))
            self.session.state.restore(begun.way_back)
            known = begun.before
            checkpoint = None
            if not may_mend and attempt >= num_retries:
                break
            self.watcher.on_retry(self.number, result)
        self._pass_over(result)
        return before

    def _finds_rates(self) -> bool:
        """Tell whether the stage finds rates itself, or has found some before a resume."""
        return leaves_rates_open(self.stage) or self.folder.has("rates")

    def _begin(self, factor: float, before: Scores | None) -> Begun:
        """Merge, drop and attach, and free what moves, at `factor` times its rates.

        `before` are the scores of the model as it is, None where the stage before learned something else.
        """
        state = self.session.state
        self.session.machine.reset_peak()
        may_lose = may_be_lost(self.stage) or self._finds_rates()
        by_adapters = state.snapshot(weights_at_stake(self.session, self.number) if may_lose else frozenset())
        enter_stage(self.session, self.number)
        anchor(self.session, ["train"])
        before = before or validate(self.session)
        by_reinit = state.snapshot(reinit_names(self.session, self.number) if may_lose else frozenset())
        old = frozenset(named_weights(state.model))
        moving, course = free_stage(self.session, self.number, self.folder)
        combined = self._names_combined()
        by_training = state.snapshot((moving.names | combined) & old if may_lose else frozenset())
        way_back = replace(by_adapters, weights={**by_training.weights, **by_reinit.weights, **by_adapters.weights})
        reader, not_kept = make_reader(self.session, self.number, moving)
        if any(group.start is not None for group in moving.groups):
            moving = self._find_rates(moving, course, reader, state.heads.as_current(by_training.weights))
        return Begun(moving.slower(factor), course, way_back, before, combined, reader, not_kept)

    def _names_combined(self) -> frozenset[str]:
        if self.stage.combine is None:
            return frozenset()
        return names_combined(self.session, self.number, measures_of(self.session, self.number, self.folder))

    def _find_rates(self, moving: Moving, course: Course, reader: PrefixReader, held: Weights) -> Moving:
        """Search the rates that are left to `auto`, and write them where a resume reads them.

        Where weights take turns, those of the first turn are searched with. `held` are copies of weights as they are.
        """
        if num_searching(self.session, self.number, moving):
            self.watcher.on_rate_search(self.number, self.stage)
        else:
            self.watcher.on_starting_rates(self.number, self.stage, list(starting_rates(moving).values()))
        session, state = self.session, self.session.state
        selected = course.turn(0).selected if isinstance(self.stage.train, ByTurns) else moving.selected
        found = find_rates(session, self.number, moving, selected, reader, held)
        measures = measures_of(session, self.number, self.folder)
        recipe = settle(session.recipe, self.number, found, moving, state.roles(), measures)
        self.folder.write("rates", {side: one.to_json() for side, one in found.items()})
        self.run_folder.write("resolved.json", resolved(recipe))
        session.recipe = recipe
        self.stage = recipe.stages[self.number]
        return build_moving(session, self.number, measures)

    def _train(self, attempt: int, begun: Begun, checkpoint: Checkpoint | None) -> Trained:
        """Train once, or go on from a checkpoint, and leave the kept weights in the model."""
        session, state, moving, course = self.session, self.session.state, begun.moving, begun.course
        weights = named_weights(state.model)
        updates = build_updates(session, self.number, attempt)
        plan = build_plan(session, self.number, attempt, updates)  # while all is free that may move
        optimizer = make_stage_optimizer(session, self.number, moving)
        facts = joint_facts(session, course)
        record = _StageRecord(self.folder, attempt, self.watcher, facts)
        turns = make_turns(session, self.number, moving, course, optimizer, record.on_turn)
        run = StageRun(state.model, optimizer, turns)
        summed_loss = make_training_loss(session, self.number, moving, course)
        evaluate = make_evaluation(session, self.number, course, summed_loss, partial(self._score, begun.reader))
        progress = Progress()
        if checkpoint is None and self.stage.state == "keep":
            put_optimizer_state(run.optimizer, weights, self._memory_before(moving))
        if checkpoint is not None:
            state.put_touched(checkpoint.tensors["weights"])
            put_optimizer_state(run.optimizer, weights, checkpoint.tensors["optimizer"])
            run.best = dict(checkpoint.tensors.get("best", {}))
            run.average = dict(checkpoint.tensors.get("average", {}))
            run.turns.put(checkpoint.tensors.get("turn", {}), checkpoint.state["turn"])
            progress = Progress.from_json(checkpoint.state["progress"])
        self.folder.forget_after(attempt, progress.update)
        self.watcher.on_stage(self.number, self.stage, moving, plan, progress)
        with in_training_form(session, self.number), begun.reader.running():
            progress = run_stage(
                run,
                updates,
                begun.reader.loss(summed_loss),
                session.machine,
                plan,
                evaluate=evaluate,
                save=partial(self._save_progress, run, attempt),
                watcher=record,
                stop_requested=self.stop_requested,
                progress=progress,
            )
        averaged = run.average.keys() & begun.combined
        state.put({name: run.average[name] for name in averaged})
        kept = any(later.state == "keep" for later in session.recipe.stages[self.number + 1 :])
        return Trained(progress, {"optimizer": optimizer_state(run.optimizer, weights)} if kept else {}, facts())

    def _score(self, reader: PrefixReader) -> Scores:
        """Score the model within its training."""
        with reader.scoring():
            return validate(self.session)

    def _memory_before(self, moving: Moving) -> OptimizerState:
        """Give what the last kept stage's optimizer remembers of weights that move in this one as well.

        It is read from that stage's checkpoint, in a run left alone as in a resumed one. Nothing comes from a stage
        with another optimizer, which stands before one that was not kept, and nothing for weights that are new since.
        """
        kept = kept_stages(self.run_folder, self.session)
        recipe = self.session.recipe
        same = bool(kept) and recipe.learning_of(max(kept)) == recipe.learning_of(self.number)
        checkpoint = kept_checkpoint(kept[max(kept)]) if same else None
        if checkpoint is None or checkpoint.state["optimizer"] != asdict(moving.optimizer):
            return {}
        members = self.session.state.roles().members
        new = (members.get(f"adapter.{attach.called}", frozenset()) for attach in self.stage.attaches)
        names = moving.names.difference(*new) - reinit_names(self.session, self.number)
        memory = checkpoint.tensors.get("optimizer", {})  # a stage that only combined has none
        return {key: value for key, value in memory.items() if key.split("|")[0] in names}

    def _combine(self, begun: Begun, progress: Progress) -> tuple[Scores, dict[str, Any]]:
        """Carry out the stage's `combine`; give the scores of the model, and for the record what was combined."""
        if self.stage.combine is None:
            scores = progress.best if self.stage.keep == "best" else progress.last
            assert scores is not None
            return scores, {}
        self.watcher.on_combine(self.number, self.stage)
        mixture = combine_snapshots(self.run_folder, self.session, self.number, begun.combined, self._validate)
        return self._validate(), {} if mixture is None else {"combined": mixture.shares}

    def _validate(self) -> Scores:
        """Score the model, unless a stop is asked for: what is not finished is combined anew after a resume."""
        if self.stop_requested():
            raise Interrupted("stopped; everything up to the last checkpoint is saved")
        return validate(self.session)

    def _result(
        self, attempt: int, begun: Begun, trained: Trained, scores: Scores, *, may_mend: bool
    ) -> dict[str, Any]:
        """Give the verdict and what led to it; a broken model that lower rates may mend is not kept."""
        moving, progress, before = begun.moving, trained.progress, begun.before
        kept, reason = judge(self.run_folder, self.session, self.number, before, scores)
        if may_mend:
            kept, reason = False, BROKEN
        elif is_broken(before, scores):
            reason = f"{reason}; {BROKEN}"
        shapes = self.session.state.roles().shapes
        recipe = self.session.recipe
        learns = recipe.view(self.number).task_name if recipe.learning_of(self.number) else None
        return {
            "name": self.stage.name,
            "decision": Decision.KEPT if kept else Decision.ROLLED_BACK,
            "reason": reason,
            "tries": attempt + 1,
            "trained_parameters": moving.num_moving(shapes),
            "moved_on_average": round(progress.num_moved / max(progress.update, 1)),
            "parameters": sum(map(prod, shapes.values())),
            "rates": moving.rates,
            "updates": progress.update,
            "best_update": progress.best_update,
            "seconds": round(progress.seconds, 2),
            "tokens_per_second": round(progress.num_tokens / max(progress.seconds, 1e-9), 1),
            "peak_memory_bytes": self.session.machine.peak_bytes(),
            **({"cache": cache_facts(begun.reader, begun.not_kept)} if moving.groups else {}),
            "scores": asdict(scores),
            "change": {metric: value - before.values[metric] for metric, value in scores.values.items()},
            **({"learns": learns} if learns else {}),
            **trained.joint,
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
            number: {"name": stages[number].name, "decision": Decision.NOT_RUN, "reason": reason}
            for number in range(self.number + 1, min(last, len(stages)))
        }
        for number, its_result in left_out.items():
            self.run_folder.stage(number, stages[number].name).write_result(its_result)
        self._close(result)
        for number, its_result in left_out.items():
            self.watcher.on_stage_end(number, its_result)

    def _save_progress(self, run: StageRun, attempt: int, progress: Progress) -> None:
        of_turn, turn = run.turns.state()
        tensors = {
            "weights": self.session.state.touched_weights(),
            "optimizer": optimizer_state(run.optimizer, named_weights(run.model)),
        }
        others = {"best": run.best, "average": run.average, "turn": of_turn}
        tensors |= {name: kept for name, kept in others.items() if kept}
        state = {"attempt": attempt, "progress": progress.to_json(), "turn": turn}
        save_checkpoint(self.folder.progress_folder(attempt, progress.update), Checkpoint(tensors, state))
        self.folder.tidy(PROGRESS_KEPT)

    def _newest_progress(self) -> Checkpoint | None:
        for path in self.folder.progress_folders():
            if checkpoint := load_checkpoint(path):
                return checkpoint
        return None


class _StageRecord:
    """Writes a stage's steps and scores into the run folder, and passes them on."""

    def __init__(
        self, folder: StageFolder, attempt: int, watcher: Watcher, facts: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._watcher = watcher
        self._facts = facts

    def on_step(self, step: Step, progress: Progress) -> None:
        """Note a finished update."""
        self._folder.append("steps", {"attempt": self._attempt, **asdict(step), "seconds": round(progress.seconds, 4)})
        self._watcher.on_step(step, progress)

    def on_turn(self, turn: Turn, update: int, counts: Mapping[str, int]) -> None:
        """Note what moves from an update on: the number of elements by weight."""
        row = {"attempt": self._attempt, "turn": turn.number, "update": update}
        self._folder.append("turns", {**row, "moves": counts, **turn.notes})

    def on_scores(self, scores: Scores, progress: Progress) -> None:
        """Note an evaluation."""
        row = {"attempt": self._attempt, "update": progress.update, "best_update": progress.best_update}
        self._folder.append("scores", {**row, **scores.values, **self._facts()})
        self._watcher.on_scores(scores, progress)


def begin_stage(session: Session, number: int, folder: StageFolder | None = None) -> tuple[Moving, Course]:
    """Do all that a stage does before it trains; give what may move in it, and what of that moves when."""
    enter_stage(session, number)
    return free_stage(session, number, folder)


def free_stage(session: Session, number: int, folder: StageFolder | None = None) -> tuple[Moving, Course]:
    """Draw anew, measure, attach and free what a stage that is entered may move; give it, and what moves when.

    What was measured is kept in `folder`.
    """
    reinit_weights(session, number)
    measures = measures_of(session, number, folder)
    displaced = attach_adapters(session, number, measures)
    moving = build_moving(session, number, measures)
    session.state.touched |= moving.names | displaced
    free_only(session.state.model, moving.names)
    return moving, make_course(session, number, moving, measures)


def measures_of(session: Session, number: int, folder: StageFolder | None) -> Measures:
    """Give what was measured when a stage began, or measure it now: a resume and a retry see the same.

    Raises InputError when it is damaged: the model may have moved since.
    """
    if folder and folder.measures.exists():
        if known := Measures.load(folder.measures):
            return known
        raise InputError(
            str(folder.measures), "the stage's scores are damaged", f"delete {folder.path}, then resume: it trains anew"
        )
    after = session.recipe.stages[number].score.after
    changed = weights_after(folder.run, session, after) if folder and after else None
    measures = measure_stage(session, number, changed)
    if folder and measures.tensors:
        measures.save(folder.measures)
    return measures


def validate(session: Session) -> Scores:
    """Score the model as it is on the validation split."""
    examples = session.examples["validation"]
    return score(session.state.model, session.task, examples, session.tokenizer, session.machine)
