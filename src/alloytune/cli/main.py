"""The command line. What is heavy is imported by the command that needs it, so that help answers at once."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from alloytune.errors import AlloytuneError, InputError

if TYPE_CHECKING:
    import polars as pl

    from alloytune.recipe.read import ReadRecipe

app = typer.Typer(
    name="alloytune",
    help="Fine-tune pretrained language models with full, partial and adapter stages in one run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped recipe's name.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hub id, folder, GGUF file, or package:NAME/PATH inside a package.")
]
DataOption = Annotated[str | None, typer.Option("--data", help="Training table: CSV, TSV, JSONL or Parquet.")]
ValidationOption = Annotated[str | None, typer.Option("--validation", help="Validation table; else cut from --data.")]
TestOption = Annotated[str | None, typer.Option("--test", help="Test table; else cut from --data.")]
TextOption = Annotated[str | None, typer.Option("--text", help="Column with the text.")]
PairOption = Annotated[str | None, typer.Option("--text-pair", help="Column with a second text.")]
LabelOption = Annotated[str | None, typer.Option("--label", help="Column with the label.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as stages.0.rate=1e-5.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the whole run.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Run folder to make; runs/NAME-DATE where absent.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
PlaceArgument = Annotated[
    str,
    typer.Argument(metavar="RUN|MODEL", help="The folder of a finished run, or a model: hub id, folder, GGUF file."),
]
NewTokensOption = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer at most; the run's own, or 256.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0.0, help="Above 0 words are drawn; 0 takes the likeliest.")
]
DrawOption = Annotated[int, typer.Option("--seed", help="Seed of the words that are drawn.")]
EncodingOption = Annotated[str, typer.Option("--encoding", help="Encoding of the table.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
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
        _require_nothing_beside_resume(recipe, options)
        from alloytune import run

        with _terminal() as terminal:
            finished = (resume / "results.json").exists()
            folder = run.resume(resume, terminal)
            if finished:
                console.print(f"{resume} is finished already.", markup=False)
                terminal.on_end(folder)
        return
    if recipe is None:
        raise InputError("train", "no recipe was given", "name one, such as hybrid, or --resume RUN")
    read = _read(recipe, model, data, validation, test, text, text_pair, label, overrides, seed)
    from alloytune import run
    from alloytune.recipe.read import require_complete
    from alloytune.record.folder import default_output

    require_complete(read)
    with _terminal() as terminal:
        run.start(read, output or default_output(read.recipe.data.train or recipe, datetime.now()), terminal)


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
    read = _read(recipe, model, data, validation, test, text, text_pair, label, overrides, seed)
    from alloytune.recipe.read import require_complete

    require_complete(read)
    from alloytune import build
    from alloytune.data.prepare import prepare
    from alloytune.estimate import estimate
    from alloytune.models.load import quiet
    from alloytune.report.tables import audit_table, estimate_table

    quiet()
    dataset = prepare(build.build_data_settings(read.recipe))
    console.print(audit_table(dataset.audit.to_json()))
    session = build.build_session(read.recipe, dataset, build.prepare_others(read.recipe))
    console.print(estimate_table(estimate(session)))


@app.command()
def predict(
    run: RunArgument,
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="CSV, TSV, JSONL or Parquet with the columns that are read.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV or JSONL to write; the terminal where absent.")
    ] = None,
    encoding: EncodingOption = "utf-8",
) -> None:
    """Answer the rows of a table: labels with the probability of each, or whatever the run has learned."""
    import polars as pl

    from alloytune.data.read import read_table
    from alloytune.models.load import quiet
    from alloytune.report.tables import count_rows
    from alloytune.use import load_tuned

    if output is not None:
        _require_writable(output)
    quiet()
    given = read_table(table, encoding)
    answers = load_tuned(run).predict_table(given, table)
    result = pl.concat([given, answers.rename(_free_names(given.columns, answers.columns))], how="horizontal")
    if num_empty := answers.to_series(0).null_count():
        has_none = "has no text and gets" if num_empty == 1 else "have no text and get"
        typer.echo(f"{count_rows(num_empty)} {has_none} no answer", err=True)
    if output is None:
        sys.stdout.write(result.write_csv())
    else:
        _write_table(result, output)


@app.command()
def evaluate(
    run: RunArgument,
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="Table with the run's columns, such as text and label.")
    ],
    encoding: EncodingOption = "utf-8",
) -> None:
    """Score a run's model on a labelled table."""
    from alloytune.data.read import read_table
    from alloytune.models.load import quiet
    from alloytune.report.tables import count_rows, scores_table
    from alloytune.use import load_tuned

    quiet()
    given = read_table(table, encoding)
    tuned = load_tuned(run)
    scores = tuned.evaluate_table(given, table)
    if scores["left_out"]:
        is_left = "is left out" if scores["left_out"] == 1 else "are left out"
        typer.echo(f"{count_rows(scores['left_out'])} without {' or '.join(tuned.recipe.columns)} {is_left}", err=True)
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
    """Show what a run did and reached."""
    from alloytune.record.folder import RunFolder
    from alloytune.report.tables import audit_table, print_places, run_report

    folder = RunFolder.open(run)
    report = run_report(folder)
    console.print(audit_table(folder.read("data/audit.json")))
    console.print(report)
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
    from alloytune.measures import select_of_model
    from alloytune.models.load import quiet
    from alloytune.recipe.tasks import TASKS
    from alloytune.report.roles import parameters, roles_json, roles_tree

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


def _read(
    recipe: str,
    model: str | None,
    data: str | None,
    validation: str | None,
    test: str | None,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    overrides: list[str] | None,
    seed: int | None,
) -> "ReadRecipe":
    """Read a recipe with the command line's options over it."""
    from alloytune.recipe.read import read_recipe

    columns = {
        "train": data,
        "validation": validation,
        "test": test,
        "text": text,
        "text_pair": text_pair,
        "label": label,
    }
    given: dict[str, Any] = {key: value for key, value in {"model": model, "seed": seed}.items() if value is not None}
    if chosen := {key: value for key, value in columns.items() if value is not None}:
        given["data"] = chosen
    return read_recipe(recipe, overrides or (), given)


def _require_nothing_beside_resume(recipe: str | None, options: Mapping[str, object]) -> None:
    """Raise an InputError that names what --resume would ignore."""
    given = [repr(recipe)] if recipe is not None else []
    given += [option for option, value in options.items() if value not in (None, [])]
    if given:
        raise InputError("--resume", "the run has its recipe already", f"leave {', '.join(given)} away")


def _require_writable(output: Path) -> None:
    """Raise an InputError for an output that could not be written once the work is done."""
    if output.suffix not in (".csv", ".jsonl"):
        raise InputError("--output", f"{str(output)!r} is neither .csv nor .jsonl", "give one of the two")
    if not output.parent.is_dir():
        raise InputError("--output", f"there is no folder {str(output.parent)!r}", "make it, or name another")
    if output.is_dir():
        raise InputError("--output", f"{str(output)!r} is a folder", "name a file")


def _free_names(taken: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Give each column a name that is free: `label`, else `predicted_label`, `predicted_label_2` and so on."""
    names: dict[str, str] = {}
    for column in wanted:
        used = {*taken, *wanted, *names.values()} - ({column} - set(taken))
        candidates = chain([column, f"predicted_{column}"], (f"predicted_{column}_{n}" for n in count(2)))
        names[column] = next(name for name in candidates if name not in used)
    return names


def _write_table(table: "pl.DataFrame", output: Path) -> None:
    """Write CSV or JSONL aside and rename it, so that a failure leaves the old file whole."""
    from alloytune.record.atomic import save_errors

    aside = output.with_name(f".{output.name}.partial")
    with save_errors(output):
        try:
            if output.suffix == ".csv":
                table.write_csv(aside)
            else:
                table.write_ndjson(aside)
            aside.replace(output)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def _terminal() -> Iterator[Any]:
    from alloytune.cli.progress import Terminal
    from alloytune.models.load import quiet

    quiet()
    terminal = Terminal(console)
    try:
        yield terminal
    finally:
        terminal.close()


if __name__ == "__main__":
    main()
