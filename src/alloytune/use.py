"""Use of the result: a tuned model that predicts, scores and can be saved elsewhere."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification

from alloytune.data.repair import repair_column
from alloytune.errors import InputError
from alloytune.evaluate.judge import score_with_intervals
from alloytune.evaluate.predict import predict
from alloytune.machine import Machine, find_machine
from alloytune.models.load import load_model, load_tokenizer, token_limit
from alloytune.record.atomic import new_folder
from alloytune.record.folder import RunFolder
from alloytune.tasks.classification import Classification


@dataclass(frozen=True)
class Tuned:
    """A tuned model. `results` is the run's `results.json`."""

    folder: RunFolder
    results: dict[str, Any]
    model: Any
    tokenizer: Any
    task: Classification
    machine: Machine
    max_length: int | None

    @property
    def scores(self) -> dict[str, float]:
        """Give the scores on the test split, or on validation where there was no test."""
        test = self.results["test"]
        kept = [stage for stage in self.results["stages"] if stage["decision"] == "kept"]
        values: dict[str, float] = test["values"] if test else kept[-1]["scores"]["values"]
        return dict(values)

    def predict(self, texts: Sequence[str] | str, text_pairs: Sequence[str] | None = None) -> pl.DataFrame:
        """Predict labels: columns `label`, `probability` and one probability per label, a row per text."""
        table = pl.DataFrame({"text": [texts] if isinstance(texts, str) else list(texts)}, schema={"text": pl.String})
        if text_pairs is not None:
            table = table.with_columns(pl.Series("text_pair", list(text_pairs), dtype=pl.String))
        return self.predict_table(table)

    def predict_table(self, table: pl.DataFrame) -> pl.DataFrame:
        """Predict for the columns `text` and, where there, `text_pair`; an empty text gets an empty answer."""
        columns = [column for column in ("text", "text_pair") if column in table.columns]
        cleaned = table.select(self._clean(table[column].fill_null("")) for column in columns)
        filled = cleaned.select(pl.all_horizontal(pl.col(column).str.len_chars() > 0 for column in columns)).to_series()
        chances = np.full((table.height, len(self.task.labels)), np.nan)
        if filled.any():
            examples, _ = self.task.encode(cleaned.filter(filled), self.tokenizer, self.max_length)
            logits = predict(self.model, self.task, examples, self.tokenizer, self.machine)
            chances[filled.to_numpy()] = softmax(logits, axis=1)
        best = np.where(filled.to_numpy(), np.nan_to_num(chances).argmax(axis=1), -1)
        answers = pl.DataFrame(
            {
                "label": [self.task.labels[n] if n >= 0 else None for n in best],
                "probability": np.nan_to_num(chances).max(axis=1),
            },
            schema={"label": pl.String, "probability": pl.Float64},
        ).with_columns(pl.when(filled).then(pl.col("probability")).alias("probability"))
        return answers.with_columns(
            pl.Series(f"probability_{label}", chances[:, n]).fill_nan(None) for n, label in enumerate(self.task.labels)
        )

    def _clean(self, texts: pl.Series) -> pl.Series:
        """Treat texts as those of the training were."""
        return repair_column(texts) if self.results["recipe"]["data"]["repair"] else texts.str.strip_chars()

    def evaluate_table(self, table: pl.DataFrame) -> dict[str, Any]:
        """Score on the columns `text`, `text_pair`, `label`: values, 95 % intervals, details, rows."""
        unknown = sorted(set(table["label"].to_list()) - set(self.task.labels))
        if unknown:
            raise InputError(
                "label",
                f"the model does not know {', '.join(map(repr, unknown[:5]))}",
                f"it knows {', '.join(self.task.labels)}",
            )
        examples, _ = self.task.encode(table, self.tokenizer, self.max_length)
        logits = predict(self.model, self.task, examples, self.tokenizer, self.machine)
        return score_with_intervals(self.task, logits, examples, seed=0)

    def save(self, path: str | Path) -> Path:
        """Copy the saved model (`model/`, or `adapter/` and `base/`) to a folder of your choice."""
        target = Path(path)
        names = self.results["saved"]
        if target.exists() and any(target.iterdir()):
            raise InputError("save", f"{str(path)!r} exists and is not empty", "choose another folder")
        with new_folder(target) as aside:
            if "model" in names:
                shutil.copytree(self.folder.model, aside, dirs_exist_ok=True)
            else:
                for name in names:
                    shutil.copytree(self.folder.path / name, aside / name)
        return target


def load_tuned(path: str | Path) -> Tuned:
    """Load the model that a run left. Raises InputError where the run is not finished."""
    folder = RunFolder.open(Path(path))
    results = folder.read("results.json")
    task = Classification(tuple(results["labels"]))
    whole = "model" in results["saved"]
    source = str(folder.model if whole else folder.base)
    tokenizer = load_tokenizer(source)
    model, _ = load_model(AutoModelForSequenceClassification, source, tokenizer, 0, **task.config)
    limit = token_limit(model, tokenizer, results["max_length"])
    machine = find_machine()
    if not whole:
        from peft import PeftModel

        import alloytune.models.bottleneck  # noqa: F401 - makes the method known to PEFT

        model = PeftModel.from_pretrained(model, str(folder.adapter))
    return Tuned(folder, results, model.to(machine.device), tokenizer, task, machine.exact(), limit)
