"""Carry out a recipe: data, stages, decisions, test, saving. A resumed run goes through the same code."""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import torch

from alloytune.build.attaching import attached_at, build_attachments
from alloytune.build.caching import check_cache
from alloytune.build.combining import build_combined
from alloytune.build.data import build_data_settings, prepare_others, with_optional_columns
from alloytune.build.joint import check_joint
from alloytune.build.moving import build_moving
from alloytune.build.pace import check_recomputing, check_regularisers
from alloytune.build.plan import fixed_updates
from alloytune.build.session import Session, build_session
from alloytune.data.prepare import prepare
from alloytune.data.store import load_splits, write_splits
from alloytune.errors import InputError, Interrupted
from alloytune.finish import finish
from alloytune.learning import Reached
from alloytune.models.heads import MAIN
from alloytune.models.source import fingerprint, locate
from alloytune.recipe.adapters import standings_before
from alloytune.recipe.read import ReadRecipe, recipe_from, require_complete, resolved
from alloytune.recipe.types.recipe import Recipe
from alloytune.record.atomic import new_folder, require_free, write_text
from alloytune.record.environment import describe
from alloytune.record.folder import RunFolder
from alloytune.selection import REHEARSAL
from alloytune.stages.anchoring import anchor
from alloytune.stages.attaching import arrange_adapters, reinit_names
from alloytune.stages.course import make_course
from alloytune.stages.snapshots import kept_stages, kept_weights
from alloytune.stages.stage import PROGRESS_KEPT, StageOfRun, measures_of, validate
from alloytune.tasks.task import Scores
from alloytune.watch import Watcher


def start(
    read: ReadRecipe, output: Path, watcher: Watcher, tables: Mapping[str, pl.DataFrame] | None = None
) -> RunFolder:
    """Begin a run in a new folder and carry it out; `tables` take the place of the recipe's files, by split.

    Input that cannot be used is refused before the first update, and no folder is left.
    """
    tables = tables or {}
    require_complete(read, has_table="train" in tables)
    require_free(output)
    read = replace(read, recipe=with_optional_columns(read.recipe, tables.get("train")))
    dataset = prepare(build_data_settings(read.recipe), **tables)
    others = prepare_others(read.recipe)
    environment = _environment(read.recipe)
    with new_folder(output, replaces=False) as aside:
        new = RunFolder(aside)
        write_text(aside / "recipe.yaml", read.text)
        new.write("resolved.json", resolved(read.recipe))
        new.write("environment.json", environment)
        write_splits(dataset, new.data)
        for name, one in others.items():
            write_splits(one, new.data / name)
    folder = RunFolder(output)
    watcher.on_data(folder)
    try:
        return carry_out(folder, watcher)
    except InputError:
        if not folder.stages.exists():
            shutil.rmtree(folder.path)
        raise


def resume(path: Path, watcher: Watcher) -> RunFolder:
    """Go on with a run where it stopped; one that is finished is left as it is."""
    folder = RunFolder.open(path)
    if folder.is_finished:
        return folder
    environment = folder.read("environment.json")
    torch.set_num_threads(environment["threads"])  # sums are taken in another order with another number
    _require_same_model(environment["model"])
    return carry_out(folder, watcher)


def carry_out(folder: RunFolder, watcher: Watcher) -> RunFolder:
    """Train every stage that is not finished yet, test the kept model, save it and prove that it loads."""
    recipe = recipe_from(folder.read("resolved.json"), source=str(folder.path / "resolved.json"))
    try:
        dataset = load_splits(folder.data)
        others = {name: load_splits(folder.data / name) for name in recipe.learnings if (folder.data / name).exists()}
        with folder.alone():
            session = build_session(recipe, dataset, others)
            rehearse(session)
            watcher.on_model(session)
            _train(folder, session, watcher)
            finish(folder, session, dataset, watcher)
    except (Interrupted, KeyboardInterrupt):
        message = f"stopped; what is done is saved; go on with: alloytune train --resume {folder.path}"
        raise Interrupted(message) from None
    return folder


def _train(folder: RunFolder, session: Session, watcher: Watcher) -> None:
    """Go to where the finished stages left the model, and carry out the others."""
    stages = [folder.stage(number, stage.name) for number, stage in enumerate(session.recipe.stages)]
    for stage in stages:
        stage.tidy(0 if stage.result() else PROGRESS_KEPT)
    for name in (*session.recipe.learnings, MAIN):
        session.state.turn_to(name)
        anchor(session, ["validation"])
    anchor(session, ["test"], exact=True)
    with _stop_on_interrupt() as stop_requested:
        reached = _replay(folder, session, Reached(MAIN, _start_scores(folder, session)))
        for number, stage in enumerate(stages):
            if stage.result() is None:
                reached = StageOfRun(folder, session, number, watcher, stop_requested).carry_out(reached)


def rehearse(session: Session) -> None:
    """Go through the stages without training, so that a selection that matches nothing is refused at once.

    Stages can be rolled back, so each is gone through with every set of adapters that may stand when it begins; sets
    that differ in nothing but the stages that attach them, as those of rounds, count once.
    """
    state, stages = session.state, session.recipe.stages
    for number, standings in enumerate(standings_before(stages)):
        alike = {
            str(
                [(stages[stage].attaches[place], session.recipe.learning_of(stage)) for stage, place in standing]
            ): standing
            for standing in sorted(map(sorted, standings))
        }
        for standing in alike.values():
            session.state.turn_to(session.recipe.learning_of(standing[0][0] if standing else number))
            for stage, place in standing:
                attachment = build_attachments(session, stage, REHEARSAL)[place]
                state.attach(attachment, attached_at(session.recipe.stages[stage], stage, place), fresh=False)
            arrange_adapters(session, number, REHEARSAL)
            reinit_names(session, number)
            moving = build_moving(session, number, REHEARSAL)
            course = make_course(session, number, moving, REHEARSAL)
            check_joint(session, number, course, fixed_updates(session, number))
            check_recomputing(session)
            check_regularisers(session, number, moving)
            check_cache(session, number, moving)
            build_combined(session, number, REHEARSAL)
            state.take_off()
    session.state.turn_to(MAIN)


def _environment(recipe: Recipe) -> dict[str, Any]:
    """Describe what the run starts from."""
    source = locate(recipe.model or "")
    return describe(
        {name: Path(file) for name, file in recipe.files.items()},
        model={"source": source, "fingerprint": fingerprint(source)},
        threads=torch.get_num_threads(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _start_scores(folder: RunFolder, session: Session) -> Scores:
    """Score the model as it came, head untrained: what the first stage is compared with."""
    if folder.is_scored:
        return Scores(**folder.read("stages/start.json"))
    scores = validate(session)
    folder.stages.mkdir(exist_ok=True)
    folder.write("stages/start.json", asdict(scores))
    return scores


def _replay(folder: RunFolder, session: Session, start: Reached) -> Reached:
    """Bring the model to where the finished stages left it; give its scores."""
    kept = kept_stages(folder, session)
    if not kept:
        return start
    for number, stage in kept.items():
        arrange_adapters(session, number, measures_of(session, number, stage))
    newest = kept[max(kept)]
    weights, result = kept_weights(newest), newest.result()
    assert result is not None
    session.state.put_touched(weights)
    return Reached(session.recipe.learning_of(max(kept)), Scores(**result["scores"]))


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
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
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_same_model(known: Mapping[str, Any]) -> None:
    if known["fingerprint"] is not None and fingerprint(known["source"]) != known["fingerprint"]:
        raise InputError(
            "model", f"{known['source']!r} has changed since the run began", "put it back, or start a new run"
        )
