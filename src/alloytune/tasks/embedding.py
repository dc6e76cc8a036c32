"""Embedding of texts, so that a query lies near its document: contrastive learning within the batch."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from alloytune.data.cells import read_json
from alloytune.data.rules import Rules, Sieved, sieve_by
from alloytune.errors import InputError
from alloytune.tasks.contrast import allowed_documents, contrastive_loss
from alloytune.tasks.pooling import How, Pooling, read_pooling, read_prompts, write_sentence_files
from alloytune.tasks.ranking import TOP, rank_documents
from alloytune.tasks.task import Batch, Encoded, Example, Task
from alloytune.tasks.texts import ROWS_AT_ONCE, next_length, pad_inputs, row_names
from alloytune.tasks.uncached import call_uncached

_QUERY, _DOCUMENT, _NEGATIVE = range(3)


@dataclass(frozen=True)
class Texts:
    """The texts of an example: query, document where known, and negatives. Equal texts have equal keys."""

    lengths: tuple[int, ...]
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Embedding(Task):
    """One vector per text, of length 1; the loss is the cross-entropy of a query's document among those of its batch.

    The batch's documents are those of all its rows and their negatives (hard ones, where the table gives them).
    A copy of the right document, and what is right for the same query in another row, is no wrong answer.
    """

    temperature: float
    query_prompt: str | None = None  # this and the next two those of the model's folder where None, until fitted
    document_prompt: str | None = None
    pooling: How | None = None
    auto_class: ClassVar[Any] = AutoModel
    pipeline: ClassVar[str] = "sentence-similarity"
    undivided: ClassVar[bool] = True

    @classmethod
    def rules(cls, settings: Mapping[str, Any], columns: Collection[str]) -> Rules:
        """Ask for a query and its document; a negative may be missing. No query stands in two splits."""
        mended = tuple(name for name in ("query", "document") if name in columns)  # negatives may be JSON
        return Rules(
            texts=("query",),
            answers=tuple(name for name in ("document", "negative") if name in columns),
            optional=frozenset({"negative"}),
            mended=mended,
            answered=_part_documents,
        )

    @classmethod
    def learn(cls, settings: Mapping[str, Any], train: pl.DataFrame) -> Self:
        """Take the settings; the rows teach nothing more."""
        pooling = None if settings["pooling"] == "auto" else settings["pooling"]
        return cls(settings["temperature"], settings["query_prompt"], settings["document_prompt"], pooling)

    @classmethod
    def recall(cls, settings: Mapping[str, Any], learned: Mapping[str, Any]) -> Self:
        """Take the settings, and what was found of the model."""
        own: dict[str, Any] = {key: settings[key] or "" for key in ("query_prompt", "document_prompt")}
        return cls(settings["temperature"], **(own | dict(learned)))

    @classmethod
    def blank(cls) -> Self:
        """Give the task without prompts."""
        return cls(0.05, "", "", "mean")

    @property
    def learned(self) -> dict[str, Any]:
        """Give the pooling and the prompts."""
        return {
            "pooling": self.pooling or "mean",
            "query_prompt": self.query_prompt or "",
            "document_prompt": self.document_prompt or "",
        }

    def fitted(self, source: str) -> Self:
        """Pool as the model's folder says, the mean where it says nothing, and put before texts what it puts there."""
        if AutoConfig.from_pretrained(source, trust_remote_code=False).is_encoder_decoder:
            what = f"{source!r} has an encoder and a decoder, which give no one vector of a text"
            raise InputError("model", what, "choose an encoder, or a decoder alone")
        query, document = read_prompts(source)
        fitted = replace(
            self,
            query_prompt=query if self.query_prompt is None else self.query_prompt,
            document_prompt=document if self.document_prompt is None else self.document_prompt,
        )
        if self.pooling is not None:
            return fitted
        found = read_pooling(source)
        return replace(fitted, pooling=found.how if found else "mean")

    def write_files(self, folder: Path, model: PreTrainedModel, max_length: int | None) -> None:
        """Write what sentence-transformers needs to embed texts in the same way."""
        prompts = {"query": self.query_prompt or "", "document": self.document_prompt or ""}
        width = model.config.get_text_config().hidden_size
        write_sentence_files(folder, self._pool, width, max_length, prompts)

    @property
    def _pool(self) -> Pooling:
        return Pooling(self.pooling or "mean")

    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize query, document and negatives of every row, one after another."""
        names, examples, num_cut = row_names(table), [], 0
        for start, part in zip(range(0, table.height, ROWS_AT_ONCE), table.iter_slices(ROWS_AT_ONCE), strict=True):
            of_part, more_cut = self._encode_rows(names[start : start + ROWS_AT_ONCE], part, tokenizer, max_length)
            examples += of_part
            num_cut += more_cut
        return Encoded(examples, num_cut)

    def _encode_rows(
        self, names: Sequence[str], table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> tuple[list[Example], int]:
        """Tokenize rows in one call; give also how many lost tokens."""
        texts = [self._texts(row) for row in table.to_dicts()]
        encoded = tokenizer([text for of_row in texts for text in of_row])
        keys = [key for key in encoded if key != "attention_mask"]
        examples, num_cut, start = [], 0, 0
        for name, of_row in zip(names, texts, strict=True):
            places = range(start, start + len(of_row))
            start += len(of_row)
            whole = [len(encoded["input_ids"][place]) for place in places]
            lengths = tuple(min(length, max_length or length) for length in whole)
            num_cut += lengths != tuple(whole)
            inputs = {key: [value for place in places for value in encoded[key][place]] for key in keys}
            if lengths != tuple(whole):
                short = tokenizer(of_row, truncation=True, max_length=max_length)
                inputs = {key: [value for one in short[key] for value in one] for key in keys}
            examples.append(Example(name, inputs, Texts(lengths, tuple(map(_key, of_row)))))
        return examples, num_cut

    def _texts(self, row: Mapping[str, Any]) -> list[str]:
        """Give a row's texts with their prompts: query, document, negatives."""
        right = _listed(row.get("document"))[:1]
        documents = [*right, *_listed(row.get("negative"))] if right else []
        before = self.document_prompt or ""
        return [(self.query_prompt or "") + row["query"], *(before + document for document in documents)]

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad all texts of these examples, one after another; a target is example number, role and key of a text."""
        texts: list[dict[str, list[int]]] = []
        targets: list[tuple[int, int, int]] = []
        for number, example in enumerate(examples):
            ends = np.cumsum(example.target.lengths).tolist()
            for role, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                texts.append({key: values[start:end] for key, values in example.inputs.items()})
                targets.append((number, min(role, _NEGATIVE), example.target.keys[role]))
        return Batch(
            # where padding stands behind the text, the model sees the same however much there is
            inputs=pad_inputs(texts, tokenizer, "right"),
            targets=torch.tensor(targets),
            rows=tuple(example.row for example in examples),
            num_tokens=sum(example.num_tokens for example in examples),
            num_targets=len(examples),
        )

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the contrastive loss of vectors [texts, width]."""
        _, roles, keys = batch.targets.unbind(1)
        is_query = roles == _QUERY
        right = (roles[~is_query] == _DOCUMENT).nonzero().squeeze(1)
        allowed = allowed_documents(keys[is_query], keys[~is_query], right)
        return contrastive_loss(outputs[is_query], outputs[~is_query], right, allowed, self.temperature)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the vectors, [texts, width].

        Where the examples do not go through the model together, their passes are computed again, one by one, for the
        gradient, so that one pass at a time is in memory (Gao et al. 2021).
        """
        if batch.pass_size is None:
            return self._embed(model, batch.inputs)
        passes = _passes(batch, batch.pass_size)
        return torch.cat([checkpoint(self._embed, model, inputs, use_reentrant=False) for inputs in passes])

    def _embed(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return self._pool(call_uncached(model, inputs)[0], inputs["attention_mask"])

    def answers(self, model: nn.Module, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Sequence[np.ndarray]:
        """Give the vectors of every example's texts, [texts, width]."""
        vectors = self.outputs(model, batch).cpu().numpy()
        starts = np.flatnonzero(batch.targets[:, 1].cpu().numpy() == _QUERY)
        return np.split(vectors, starts[1:])

    def figures(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> np.ndarray:
        """Rank each row's document among all documents and negatives of these rows.

        Gives [rows, figures]: recall at 1, 5 and 10, nDCG at 10 and reciprocal rank of the row's query with all its
        documents, the loss, the rank of the row's own document, and the row's share of its query.
        """
        documents: dict[int, np.ndarray] = {}
        for vectors, example in zip(answers, examples, strict=True):
            documents |= dict(zip(example.target.keys[1:], vectors[1:], strict=True))
        number_of = {key: number for number, key in enumerate(documents)}
        own = np.array([number_of[example.target.keys[1]] for example in examples])
        _, queries, counts = np.unique(
            [example.target.keys[0] for example in examples], return_inverse=True, return_counts=True
        )
        asked = np.stack([vectors[0] for vectors in answers])
        ranked = rank_documents(asked, np.stack(list(documents.values())), own, queries, self.temperature)
        columns = (ranked.ndcg, ranked.reciprocal, ranked.losses, ranked.ranks, 1 / counts[queries])
        return np.column_stack([ranked.recall, *columns])

    def values(self, figures: np.ndarray) -> dict[str, float]:
        """Give means over queries, and the loss as a mean over rows."""
        shares = figures[:, -1] / figures[:, -1].sum()
        recalls = {f"recall_at_{top}": float(shares @ figures[:, n]) for n, top in enumerate(TOP)}
        ndcg, reciprocal, loss = (figures[:, len(TOP) + n] for n in range(3))
        means = {"ndcg_at_10": float(shares @ ndcg), "mrr": float(shares @ reciprocal), "loss": float(loss.mean())}
        first = f"recall_at_{TOP[-1]}"
        return {first: recalls.pop(first), **means, **recalls}

    def details(
        self, answers: Sequence[np.ndarray], examples: Sequence[Example], figures: np.ndarray
    ) -> dict[str, Any]:
        """Count rows by the rank of their document."""
        ranks = figures[:, -2]
        limits = {"1": (1, 1), "2 to 5": (2, 5), "6 to 10": (6, 10), "11 to 100": (11, 100), "over 100": (101, np.inf)}
        found = {name: int(((ranks >= low) & (ranks <= high)).sum()) for name, (low, high) in limits.items()}
        return {"ranks": [{"rank": name, "rows": number} for name, number in found.items()]}

    def table(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> pl.DataFrame:
        """Give the cosine between query and document, or, where no documents are known, the query's vector."""
        if all(len(vectors) > 1 for vectors in answers):
            cosines = [float(vectors[0] @ vectors[1]) for vectors in answers]
            return pl.DataFrame({"similarity": cosines}, schema={"similarity": pl.Float64})
        vectors = [[round(float(value), 7) for value in both[0]] for both in answers]
        return pl.DataFrame({"embedding": vectors}, schema={"embedding": pl.List(pl.Float64)})


TASK = Embedding


def _part_documents(table: pl.DataFrame) -> Sieved:
    """Make a row of every document that a cell lists; each is right for the query."""
    if "document" not in table.columns:
        return table, []
    listed = [_listed(cell) for cell in table["document"]]
    table, dropped = sieve_by(table, [None if texts else "an empty list" for texts in listed], "missing document")
    parted = table.with_columns(pl.Series("document", [texts for texts in listed if texts], pl.List(pl.String)))
    parted = parted.explode("document")
    number = pl.int_range(pl.len()).over("row") + 1
    name = pl.when(number == 1).then("row").otherwise(pl.format("{} ({})", "row", number))
    return parted.with_columns(name.alias("row")), dropped


def _listed(cell: str | None) -> list[str]:
    """Read a cell that holds a text, or a JSON list of texts."""
    if cell is None or not cell.strip():
        return []
    try:
        listed = read_json(cell)
    except ValueError:
        return [cell]
    if isinstance(listed, list) and all(isinstance(text, str | None) for text in listed):
        return [text for text in listed if text and text.strip()]
    return [cell]


def _key(text: str) -> int:
    """Give a number that only equal texts share."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _passes(batch: Batch, size: int) -> Iterator[dict[str, Tensor]]:
    """Divide a batch's texts by so many examples, each padded as if it were a batch."""
    numbers = batch.targets[:, 0]
    for start in range(0, len(batch.rows), size):
        chosen = (numbers >= start) & (numbers < start + size)
        longest = int(batch.inputs["attention_mask"][chosen].sum(1).max())
        yield {key: value[chosen, : next_length(longest)] for key, value in batch.inputs.items()}
