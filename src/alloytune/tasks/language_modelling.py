"""Language modelling on text without labels: hidden tokens for encoders, the next token for decoders."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerBase

from alloytune.data.rules import Rules
from alloytune.errors import InputError
from alloytune.tasks.masking import IGNORED, hide
from alloytune.tasks.objectives import Objective, objective_of
from alloytune.tasks.target_logits import target_logits, target_loss
from alloytune.tasks.task import Batch, Encoded, Example, Task
from alloytune.tasks.texts import encode_texts, pad_inputs

_NOTHING = "no token to foretell"


@dataclass(frozen=True)
class Foretold:
    """The targets of an example, IGNORED where a token carries none, and its tokens as they are.

    `places` are those that may be hidden, `mask_id` and `num_words` what they are hidden behind.
    """

    targets: tuple[int, ...]
    ids: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    mask_id: int = 0
    num_words: int = 0


@dataclass(frozen=True)
class LanguageModelling(Task):
    """Tokens foretold from those around them (`masked`) or before them (`next`); the loss is cross-entropy.

    Where they are masked, `share` of a text's tokens are, other ones in every epoch (Devlin et al. 2019, Liu et al.
    2019). Scores mask the same ones each time.
    """

    share: float
    objective: Objective | None = None  # the one that the model was pretrained for, until the task is fitted

    @property
    def auto_class(self) -> Any:
        """Give transformers' class with the head of the objective."""
        return AutoModelForCausalLM if self.objective == "next" else AutoModelForMaskedLM

    @property
    def pipeline(self) -> str:
        """Give what model hubs call it."""
        return "text-generation" if self.objective == "next" else "fill-mask"

    @classmethod
    def rules(cls, settings: Mapping[str, Any], columns: Collection[str]) -> Rules:
        """Ask for text alone."""
        return Rules(texts=("text",), answers=(), mended=("text",))

    @classmethod
    def learn(cls, settings: Mapping[str, Any], train: pl.DataFrame) -> Self:
        """Take the settings; the rows teach nothing more."""
        return cls(settings["share"], None if settings["objective"] == "auto" else settings["objective"])

    @classmethod
    def recall(cls, settings: Mapping[str, Any], learned: Mapping[str, Any]) -> Self:
        """Take the settings, and the objective that was found."""
        return cls(settings["share"], learned["objective"])

    @classmethod
    def blank(cls) -> Self:
        """Give the task for an encoder."""
        return cls(0.15, "masked")

    @property
    def learned(self) -> dict[str, Any]:
        """Give the objective."""
        return {"objective": self.objective}

    def fitted(self, source: str) -> Self:
        """Take the objective that the model's kind is pretrained for."""
        found = objective_of(source)
        if found is None or self.objective not in (None, found):
            what = f"{source!r} is not made to foretell {self.objective or 'masked or next'} tokens"
            raise InputError("model", what, "choose an encoder or a decoder, and `objective: auto`")
        return replace(self, objective=found)

    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize the column `text`; a target is a Foretold. Texts in which no token can be foretold are left out."""
        return self._encode(table, tokenizer, max_length, in_pieces=False)

    def encode_in_pieces(
        self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """Tokenize all of every text; what is beyond the limit makes further examples."""
        return self._encode(table, tokenizer, max_length, in_pieces=True)

    def _encode(
        self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, in_pieces: bool
    ) -> Encoded:
        if self.objective == "masked" and tokenizer.mask_token_id is None:
            raise InputError("model", "its tokenizer has no mask token", "choose `objective: next`, or another model")
        texts, targets = table.select(pl.exclude("text_pair")), [None] * table.height
        encoded = encode_texts(texts, targets, tokenizer, max_length, in_pieces=in_pieces)
        special = frozenset(tokenizer.all_special_ids)
        examples = [self._aim(example, special, tokenizer) for example in encoded.examples]
        kept = [example for example in examples if any(target != IGNORED for target in example.target.targets)]
        left_out = tuple(
            (example.row, _NOTHING) for example in examples if all(t == IGNORED for t in example.target.targets)
        )
        return Encoded(kept, encoded.num_cut, left_out, encoded.notes)

    def _aim(self, example: Example, special: Collection[int], tokenizer: PreTrainedTokenizerBase) -> Example:
        """Set an example's targets as they stand in scores."""
        ids = tuple(example.inputs["input_ids"])
        if self.objective == "next":
            return replace(example, target=Foretold((*ids[1:], IGNORED)))
        places = tuple(place for place, token in enumerate(ids) if token not in special)
        target = Foretold((IGNORED,) * len(ids), ids, places, int(tokenizer.mask_token_id or 0), len(tokenizer))
        digest = hashlib.blake2b(repr(ids).encode(), digest_size=8).digest()
        return self.varied(replace(example, target=target), np.random.default_rng(int.from_bytes(digest, "little")))

    def varied(self, example: Example, random: np.random.Generator) -> Example:
        """Mask other tokens."""
        if self.objective == "next":
            return example
        hidden = example.target
        read, targets = hide(hidden.ids, hidden.places, hidden.mask_id, hidden.num_words, self.share, random)
        return replace(
            example, inputs={**example.inputs, "input_ids": read}, target=replace(hidden, targets=tuple(targets))
        )

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad these examples; targets are token numbers, IGNORED where there is none."""
        inputs = pad_inputs([example.inputs for example in examples], tokenizer, "right")
        targets = torch.full(inputs["input_ids"].shape, IGNORED)
        for row, example in enumerate(examples):
            targets[row, : example.num_tokens] = torch.tensor(example.target.targets)
        return Batch(
            inputs=inputs,
            targets=targets,
            rows=tuple(example.row for example in examples),
            num_tokens=sum(example.num_tokens for example in examples),
            num_targets=int((targets != IGNORED).sum()),
        )

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the cross-entropy of logits [targets, words]."""
        targets = batch.targets[batch.targets != IGNORED]
        return cross_entropy(outputs, targets, reduction="sum", label_smoothing=label_smoothing)

    def summed_loss(self, model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the loss, its logits a few at a time."""
        chosen = batch.targets != IGNORED
        return target_loss(model, batch.inputs, chosen, batch.targets[chosen], label_smoothing)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the logits of the positions with a target, [targets, words]."""
        return target_logits(model, batch.inputs, batch.targets != IGNORED)

    def answers(self, model: nn.Module, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Sequence[np.ndarray]:
        """Give of every example the summed cross-entropy, how many targets it has, and how many are right, [3]."""
        logits = self.outputs(model, batch)
        has_target = batch.targets != IGNORED
        targets, rows = batch.targets[has_target], has_target.nonzero()[:, 0]
        losses = cross_entropy(logits, targets, reduction="none")
        of_tokens = torch.stack([losses, torch.ones_like(losses), (logits.argmax(-1) == targets).float()], dim=1)
        summed = torch.zeros(len(batch.rows), 3, device=logits.device).index_add(0, rows, of_tokens)
        return list(summed.cpu().numpy())

    def figures(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> np.ndarray:
        """Give the summed cross-entropy, the targets and the right ones of every row, [rows, 3]."""
        return np.stack(answers).astype(np.float64)

    def values(self, figures: np.ndarray) -> dict[str, float]:
        """Give cross-entropy and accuracy per target, and perplexity."""
        losses, targets, right = figures.sum(axis=0)
        loss = float(losses / targets)
        return {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0))), "accuracy": float(right / targets)}

    def table(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> pl.DataFrame:
        """Give the perplexity of every text."""
        found = [float(np.exp(min(losses / targets, 700.0))) for losses, targets, _ in answers]
        return pl.DataFrame({"perplexity": found}, schema={"perplexity": pl.Float64})


TASK = LanguageModelling
