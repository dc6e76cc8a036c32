"""The command line. What is heavy is imported by the command that needs it, so that help answers at once."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from alloytune import __version__
from alloytune.cli.answers import csv_of, free_names, require_writable, write_table
from alloytune.cli.inputs import given_of, read_columns, read_complete, read_for, require_nothing_beside_resume
from alloytune.cli.options import (
    ColumnOption,
    DataOption,
    DrawOption,
    EncodingOption,
    LabelOption,
    ModelOption,
    NewTokensOption,
    OutputOption,
    OwnLabelOption,
    OwnPairOption,
    OwnTextOption,
    PairOption,
    PlaceArgument,
    Precision,
    PrecisionOption,
    RecipeArgument,
    RunArgument,
    SeedOption,
    SetOption,
    TemperatureOption,
    TestOption,
    TextOption,
    ValidationOption,
)
from alloytune.errors import AlloytuneError, InputError

app = typer.Typer(
    name="alloytune",
    help="Fine-tune pretrained language models with full, partial and adapter stages in one run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()


def _show_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"alloytune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Read the options that all commands share; `main` has taken --debug out already."""


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A recipe file, or a shipped recipe's name.")
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
    validation: ValidationOption = None,
    test: TestOption = None,
    text: TextOption = None,
    text_pair: PairOption = None,
    label: LabelOption = None,
    overrides: SetOption = None,
    seed: SeedOption = None,
    output: OutputOption = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a stopped run.")] = None,
) -> None:
    """Train by a recipe, or go on with a run that was stopped."""
    if resume is not None:
        options: dict[str, object] = {
            "--model": model,
            "--data": data,
            "--validation": validation,
            "--test": test,
            "--text": text,
            "--text-pair": text_pair,
            "--label": label,
            "--set": overrides,
            "--seed": seed,
            "--output": output,
        }
        require_nothing_beside_resume(recipe, options)
        from alloytune.record.folder import RunFolder

        was_finished = RunFolder.open(resume).is_finished
        from alloytune import run

        with _terminal() as terminal:
            folder = run.resume(resume, terminal)
            if was_finished:
                console.print(f"{resume} is finished already.", markup=False)
                terminal.on_end(folder)
        return
    if recipe is None:
        raise InputError("train", "no recipe was given", "name one, such as hybrid, or --resume RUN")
    read = read_complete(recipe, model, data, validation, test, text, text_pair, label, overrides, seed)
    from alloytune.record.atomic import require_free
    from alloytune.record.folder import default_output

    output = output or default_output(read.recipe.data.train or recipe, datetime.now())
    require_free(output)
    from alloytune import run

    with _terminal() as terminal:
        run.start(read, output, terminal)


@app.command()
def check(
    recipe: RecipeArgument,
    model: ModelOption = None,
    data: DataOption = None,
    validation: ValidationOption = None,
    test: TestOption = None,
    text: TextOption = None,
    text_pair: PairOption = None,
    label: LabelOption = None,
    overrides: SetOption = None,
    seed: SeedOption = None,
) -> None:
    """Read everything and train nothing: what each stage moves, what the data holds, what it will cost."""
    read = read_complete(recipe, model, data, validation, test, text, text_pair, label, overrides, seed)
    from alloytune.build.data import build_data_settings, prepare_others, with_optional_columns
    from alloytune.build.session import build_session
    from alloytune.data.prepare import prepare
    from alloytune.estimate import estimate
    from alloytune.models.load import quiet
    from alloytune.report.tables import audit_table, estimate_table, tell_of_rows
    from alloytune.run import rehearse

    quiet()
    whole = with_optional_columns(read.recipe)
    dataset = prepare(build_data_settings(whole))
    console.print(audit_table(dataset.audit.to_json()))
    session = build_session(whole, dataset, prepare_others(whole))
    if told := tell_of_rows(session.learning, session.max_length):
        console.print(told)
    rehearse(session)
    with console.status("counting what full fine-tuning costs ...") as status:
        cost = estimate(session, lambda stage: status.update(f"trying stage {stage} ..."))
    console.print(estimate_table(cost))


@app.command()
def predict(
    run: RunArgument,
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table with the columns that are read.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV or JSONL to write; the terminal where absent.")
    ] = None,
    text: OwnTextOption = None,
    text_pair: OwnPairOption = None,
    column: ColumnOption = None,
    precision: PrecisionOption = Precision.float32,
    encoding: EncodingOption = "utf-8",
) -> None:
    """Answer the rows of a table: labels with the probability of each, or whatever the run has learned."""
    if output is not None:
        require_writable(output)
    given = read_for(run, table, encoding)
    from alloytune.data.read import read_records
    from alloytune.models.load import quiet
    from alloytune.report.tables import count_rows
    from alloytune.use import load_tuned

    quiet()
    columns = given_of(text=text, text_pair=text_pair) | read_columns(column)
    answers = load_tuned(run, precision.value).predict_table(given, table, columns)
    names = free_names(given.columns, answers.columns)
    answers = answers.rename(names)
    if taken := [f'"{name}"' for column, name in names.items() if column != name]:
        typer.echo(f"the table's columns stay as they are; answers are in {', '.join(taken)}", err=True)
    if num_empty := answers.to_series(0).null_count():
        are = "gets no answer, as there is" if num_empty == 1 else "get no answer, as there is"
        typer.echo(f"{count_rows(num_empty)} {are} nothing to read, or nothing that can be read", err=True)
    if output is None:
        sys.stdout.write(csv_of(given, answers))
    else:
        records = read_records(table, encoding) if output.suffix == ".jsonl" else None
        write_table(given, answers, output, records)


@app.command()
def evaluate(
    run: RunArgument,
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="Table with the run's columns, such as text and label.")
    ],
    text: OwnTextOption = None,
    text_pair: OwnPairOption = None,
    label: OwnLabelOption = None,
    column: ColumnOption = None,
    encoding: EncodingOption = "utf-8",
) -> None:
    """Score a run's model on a labelled table."""
    given = read_for(run, table, encoding)
    from alloytune.models.load import quiet
    from alloytune.report.tables import scores_table, tell_left_out, tell_trained_on
    from alloytune.use import load_tuned

    quiet()
    columns = given_of(text=text, text_pair=text_pair, label=label) | read_columns(column)
    scores = load_tuned(run).evaluate_table(given, table, columns)
    for note in filter(None, (tell_left_out(scores["left_out"]), tell_trained_on(scores))):
        typer.echo(f"note: {note}", err=True)
    console.print(scores_table(scores, table.name))


@app.command()
def generate(
    place: PlaceArgument,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to answer, each for itself.")],
    max_new_tokens: NewTokensOption = None,
    temperature: TemperatureOption = 0.0,
    seed: DrawOption = 0,
) -> None:
    """Write an answer to each prompt: a quick look at a run's model, or at one as it came."""
    from alloytune.models.load import quiet
    from alloytune.talk import load_writer

    quiet()
    writer = load_writer(place, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    for answer in writer.answer(prompts):
        typer.echo(answer)


@app.command()
def chat(
    place: PlaceArgument,
    max_new_tokens: NewTokensOption = None,
    temperature: TemperatureOption = 0.0,
    seed: DrawOption = 0,
) -> None:
    """Talk with a run's model, or with one as it came; /new begins anew, /quit ends."""
    from alloytune.models.load import quiet
    from alloytune.talk import converse, load_writer

    quiet()
    writer = load_writer(place, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    is_terminal = sys.stdin.isatty()

    def ask() -> None:
        if is_terminal:
            typer.echo("> ", nl=False)

    converse(writer, sys.stdin, ask, stream=is_terminal)


@app.command()
def show(run: RunArgument) -> None:
    """Show what a run did and reached; one that was stopped shows how far it came."""
    from alloytune.record.folder import RunFolder
    from alloytune.report.tables import audit_table, print_places, report_so_far, run_report

    folder = RunFolder.open(run)
    report = run_report(folder) if folder.is_finished else report_so_far(folder)
    console.print(audit_table(folder.read("data/audit.json")))
    console.print(report)
    if folder.is_finished:
        print_places(console, folder)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Explain this recipe and print its file.")
    ] = None,
) -> None:
    """List the recipes by purpose, or explain one and print its file.

    Your own are found in ~/.config/alloytune/recipes (or what your system has for that), or in the folders that the
    environment variable ALLOYTUNE_RECIPES names.
    """
    from alloytune.cli.listing import listing
    from alloytune.recipe.catalogue import explained

    if name is not None:
        typer.echo(explained(name), nl=False)
    else:
        console.print(listing())


@app.command()
def roles(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, or package:NAME/PATH.")],
    selection: Annotated[
        str, typer.Argument(metavar="[SELECTION]", help="Show only what this picks, such as 'layers[-2:] & mlp'.")
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of random(...).")] = 0,
    task: Annotated[str, typer.Option("--task", help="The task whose head is put on.")] = "classification",
) -> None:
    """Show a model's parameters by role, with their shapes and counts, or what a selection picks of them."""
    from alloytune.models.load import quiet
    from alloytune.recipe.tasks import TASKS
    from alloytune.report.roles import parameters, roles_json, roles_tree
    from alloytune.stages.measures import select_of_model

    if task not in TASKS:
        raise InputError("--task", f"there is no task {task!r}", f"name one of {', '.join(TASKS)}")
    quiet()
    found, selected = select_of_model(model, selection, seed, task)
    listed = parameters(found.shapes, found.members, selected.counts(found.shapes))
    if as_json:
        console.print_json(data=roles_json(listed, found.shared))
    else:
        console.print(roles_tree(selection, listed, found.shared))


@app.command()
def demo(
    rows: Annotated[str, typer.Option("--rows", help="Tweets to use: a number, all, or auto for what fits.")] = "auto",
    output: OutputOption = None,
    seed: SeedOption = None,
) -> None:
    """Run the founding recipe on 38,158 raw tweets with a real model (needs the demo extra)."""
    from alloytune.demo import run_demo

    with _terminal() as terminal:
        run_demo(rows, output, seed, terminal)


def main() -> None:
    """Run the command line; an error of ours is one line and its exit code."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app()
    except AlloytuneError as error:
        if debug:
            raise
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        typer.echo(f"unexpected {type(error).__name__}: {error}; run again with --debug and report it", err=True)
        sys.exit(1)


@contextmanager
def _terminal() -> Iterator[Any]:
    from alloytune.models.load import quiet
    from alloytune.terminal import shown_on

    quiet()
    with shown_on(console) as terminal:
        yield terminal
