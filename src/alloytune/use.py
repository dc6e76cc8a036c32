"""Use of the result: a tuned model that predicts, scores and can be saved elsewhere."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from alloytune.build.data import build_rules
from alloytune.build.session import build_architecture
from alloytune.data.cells import TRUTHS, as_string, written_alike
from alloytune.data.clean import drop_missing, repair, strip
from alloytune.data.columns import add_optional, add_stand_ins, require_columns
from alloytune.data.read import any_table
from alloytune.data.rules import Sieved
from alloytune.errors import InputError
from alloytune.evaluate.judge import score_with_intervals
from alloytune.evaluate.predict import predict
from alloytune.machine import Machine, Precision, find_machine
from alloytune.models.load import load_model, load_tokenizer, quiet, token_limit
from alloytune.models.reload import put_adapters
from alloytune.recipe.read import recipe_from
from alloytune.recipe.types.recipe import Recipe
from alloytune.record.atomic import new_folder, why_taken
from alloytune.record.decisions import Decision
from alloytune.record.folder import RunFolder
from alloytune.tasks.abilities import Anchored, Sparing
from alloytune.tasks.task import Example, Task, find_task


@dataclass(frozen=True)
class Tuned:
    """A tuned model. `results` is the run's `results.json`."""

    folder: RunFolder
    results: dict[str, Any]
    recipe: Recipe
    model: Any
    tokenizer: Any
    task: Task
    machine: Machine
    max_length: int | None

    def __repr__(self) -> str:
        """Give folder, task and scores; the rest fills pages."""
        scores = {name: round(value, 4) for name, value in self.scores.items()}
        split = "test" if self.results["test"] else "validation"
        return f"Tuned(folder={str(self.folder.path)!r}, task={self.recipe.task_name!r}, {split} scores={scores})"

    @property
    def scores(self) -> dict[str, float]:
        """Give the scores on the test split, or on validation where there was no test.

        Where no stage was kept they are those of the model before the first.
        """
        stages = [stage for stage in self.results["stages"] if "learns" not in stage]
        kept = [stage["scores"] for stage in stages if stage["decision"] == Decision.KEPT]
        scores = self.results["test"] or [self.results["start"], *kept][-1]
        return dict(scores["values"])

    def predict(self, texts: Any, text_pairs: Sequence[str | None] | str | None = None) -> pl.DataFrame:
        """Answer texts: for labels columns `label`, `probability` and one probability per label; a row per text.

        A table is answered as `predict_table` does it.
        """
        if isinstance(texts, Path | Mapping) or hasattr(texts, "columns"):
            return self.predict_table(texts)
        if unknown := sorted(set(self._texts) - {"text", "text_pair"}):
            raise InputError("texts", f"the model reads {', '.join(unknown)}", "give a table to predict_table")
        columns = {"text": _texts("texts", texts)}
        if text_pairs is not None:
            columns["text_pair"] = _texts("text_pairs", text_pairs)
        self._require_pairs(columns)
        return self._predict(pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)))

    def predict_table(
        self, table: Any, where: Path | str = "table", columns: Mapping[str, str] | None = None
    ) -> pl.DataFrame:
        """Answer the rows of a table with the run's own columns, or with those of the task, such as `text`.

        The table is a file's path, or anything that `tune` takes; an empty text gets an empty answer. `where` names it
        in errors. `columns` says what columns are called here, by the task's names: `{"text": "review"}`.
        """
        return self._predict(self._choose_columns(any_table(table), where, self._texts, columns or {}))

    def _predict(self, table: pl.DataFrame) -> pl.DataFrame:
        """Answer every row: the number of those that are answered in scores is of no account here."""
        task = self.task.answering(table.height) if isinstance(self.task, Sparing) else self.task
        rows, _ = self._clean(table)
        examples, answers, _ = self._answers(task, rows)
        if isinstance(task, Anchored):
            examples = self._anchored(task, examples)
        places = pl.Series("place", [int(example.row) - 1 for example in examples], pl.Int64)
        found = task.table(answers, examples).with_columns(places)
        every = pl.DataFrame({"place": pl.int_range(table.height, eager=True)})
        return every.join(found, on="place", how="left", maintain_order="left").drop("place")

    def _answers(self, task: Task, rows: pl.DataFrame) -> tuple[Sequence[Example], list[Any], list[str]]:
        """Give the examples that rows become, what the model answers to them, and why some rows become none."""
        encoded = task.encode(rows, self.tokenizer, self.max_length)
        answers = predict(self.model, task, encoded.examples, self.tokenizer, self.machine)
        return encoded.examples, answers, [reason for _, reason in encoded.left_out]

    @property
    def _texts(self) -> tuple[str, ...]:
        """Give the columns that the model reads: of preferences all, as it writes no answers but weighs those given."""
        return tuple(self.recipe.columns) if isinstance(self.task, Anchored) else build_rules(self.recipe).texts

    def evaluate_table(
        self, table: Any, where: Path | str = "table", columns: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Score on a table with the run's own columns, or with those of the task, such as `text` and `label`.

        Give values, 95 % intervals, details, rows, `left_out`: how many rows cannot be used, by the reason, and
        `trained_on`: how many read as rows of the training do. The table is a file's path, or anything that `tune`
        takes, and is treated as the training's rows were. `where` and `columns` as in `predict_table`.
        """
        given = any_table(table)
        rows, dropped = self._clean(self._choose_columns(given, where, list(self.recipe.columns), columns or {}))
        rows, unanswered = build_rules(self.recipe).answered(rows)
        try:
            examples, answers, unfit = self._answers(self.task, rows)
        except InputError as error:  # the task knows its own name of the column, not whose it is and what it is called
            column = self._columns_in(given, list(self.recipe.columns), columns or {}).get(error.where, error.where)
            raise InputError(f"{where}: {column}", error.what, error.remedy) from None
        left_out = Counter([row.reason for row in (*dropped, *unanswered)] + unfit)
        if not examples:
            listed = ", ".join(f"{reason}: {count}" for reason, count in left_out.most_common())
            raise InputError(str(where), f"no row can be scored ({listed})", "give others, or name other columns")
        if isinstance(self.task, Anchored):
            examples = self._anchored(self.task, examples)
        scores = score_with_intervals(self.task, answers, examples, seed=0)
        return scores | {"left_out": dict(left_out.most_common()), "trained_on": self._count_trained_on(rows)}

    def _count_trained_on(self, rows: pl.DataFrame) -> int:
        """Count the rows whose texts are those of a training row; none where the run's data are gone."""
        file = self.folder.data / "train.parquet"
        if not file.exists():
            return 0
        trained = pl.read_parquet(file, glob=False)
        texts = [text for text in build_rules(self.recipe).texts if text in trained.columns and text in rows.columns]
        return rows.join(trained, on=texts, how="semi", nulls_equal=True).height

    def _anchored(self, task: Anchored, examples: Sequence[Example]) -> list[Example]:
        """Let the pretrained model answer the same examples, where the task compares with that."""
        changed = build_architecture(self.recipe)
        source = self.results["model"]
        pretrained, _ = load_model(self.task.auto_class, source, self.tokenizer, 0, changed, **self.task.config)
        pretrained = pretrained.to(self.machine.device)
        return task.anchored(predict(pretrained, self.task, examples, self.tokenizer, self.machine), examples)

    def _choose_columns(
        self, table: pl.DataFrame, where: Path | str, names: Sequence[str], given: Mapping[str, str]
    ) -> pl.DataFrame:
        """Give the columns that the run was trained on, under the names that the task knows."""
        if unread := [name for name in given if name not in names]:
            raise InputError("columns", f"the run reads no {unread[0]}", f"name columns for {', '.join(names)}")
        rules = build_rules(self.recipe)
        table = add_stand_ins(
            table, {name: given.get(name, self.recipe.columns[name]) for name in names}, rules.stand_ins
        )
        own = self._columns_in(table, names, given)
        table = add_optional(table, own, rules.optional)
        require_columns(table, where, list(own.values()))
        chosen = table.select(pl.col(column).alias(name) for name, column in own.items())
        learned = [str(label) for label in self.results["learned"].get("labels", ())]
        if any(label.endswith(".0") or label in TRUTHS[2:] for label in learned):  # as they were written in training
            return chosen
        return written_alike([chosen], "label")[0]

    def _columns_in(self, table: pl.DataFrame, names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
        """Give what columns are called in a table, by the task's names: as in the training, or by the task's own."""
        own = {name: given.get(name, self.recipe.columns[name]) for name in names}
        has_own = all(column in table.columns for column in own.values())
        if not given and not has_own and all(name in table.columns for name in own):
            return {name: name for name in own}
        return own

    def _clean(self, table: pl.DataFrame) -> Sieved:
        """Treat rows as those of the training were, and drop those that cannot be used; `row` counts from 1."""
        rules = build_rules(self.recipe, table.columns)
        number = pl.int_range(1, table.height + 1).cast(pl.String)
        rows = strip(table.select(number.alias("row"), pl.lit("").alias("split"), pl.all()), rules)
        if self.recipe.data.repair:
            rows, _ = repair(rows, rules)
        rows, missing = drop_missing(rows, rules)
        rows, unfit = rules.sift(rows)
        return rows, missing + unfit

    def _require_pairs(self, columns: Mapping[str, Sequence[str | None]]) -> None:
        """Raise an InputError unless there are pairs exactly where the run was trained on them, one for each text."""
        trained = "text_pair" in self.recipe.columns
        if trained != ("text_pair" in columns):
            what, remedy = ("pairs", "give text_pairs too") if trained else ("single texts", "leave text_pairs away")
            raise InputError("text_pairs", f"the model was trained on {what}", remedy)
        if trained and len(columns["text"]) != len(columns["text_pair"]):
            numbers = f"{len(columns['text_pair'])} for {len(columns['text'])} texts"
            raise InputError("text_pairs", f"there are {numbers}", "give one for each text")

    def save(self, path: str | Path) -> Path:
        """Copy the saved model (`model/`, or `adapter/` and `base/`) to a folder of your choice."""
        target = Path(path)
        names = self.results["saved"]
        if why := why_taken(target):
            raise InputError("save", why, "choose another folder")
        with new_folder(target) as aside:
            if "model" in names:
                shutil.copytree(self.folder.model, aside, dirs_exist_ok=True)
            else:
                for name in names:
                    shutil.copytree(self.folder.path / name, aside / name)
        return target


def _texts(where: str, given: Sequence[str | None] | str) -> list[str | None]:
    """Give texts as a list; a single string is one text, None an empty one."""
    texts: list[str | None] = [given] if isinstance(given, str) else list(given)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            if as_string(text) is not None:  # NaN and NA are missing, too
                raise InputError(where, f"{text!r} is no text", "give a string, or a list of strings")
            texts[place] = None
    return texts


def load_tuned(path: str | Path, precision: Precision = "float32") -> Tuned:
    """Load the model that a run left. Raises InputError where the run is not finished.

    `precision` is that of matrix products: float32, in which the run was tested and others load the model, or `auto`
    for what this machine computes fastest.
    """
    quiet()
    folder = RunFolder.open(Path(path))
    results = folder.read("results.json")
    recipe = recipe_from(results["recipe"], source=str(folder.path / "results.json"))
    whole = "model" in results["saved"]
    source = str(folder.model if whole else folder.base)
    task = find_task(recipe.task_name).recall(recipe.task_settings, results["learned"])
    tokenizer = load_tokenizer(source)
    model, _ = load_model(task.auto_class, source, tokenizer, 0, **task.config)
    limit = token_limit(model, tokenizer, results["max_length"])
    machine = find_machine(precision)
    if not whole:
        model = put_adapters(model, folder.adapter, results["adapters"])
    return Tuned(folder, results, recipe, model.to(machine.device), tokenizer, task, machine, limit)
