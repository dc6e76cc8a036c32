"""Changes to a pretrained model before it is trained: fewer layers, other dropout, another pooling, more tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alloytune.errors import InputError
from alloytune.models.roles import Roles

_LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
_POOLING = "classifier_pooling"  # the one choice of pooling in transformers' configs that leaves padding out
_POOLED_AS = {"eurobert": {"cls": "bos"}}  # what others call by another name
_DROPOUT = re.compile(r"(^|_)(dropout|pdrop|dropout_prob|dropout_rate)$")


@dataclass(frozen=True)
class Architecture:
    """What is changed. `layers` is how many are kept, `tokens` are new ones; None changes nothing.

    `pooling` is what the head of a sequence reads, `cls` or `mean`.
    """

    layers: int | None = None
    dropout: float | None = None
    tokens: tuple[str, ...] = ()
    pooling: str | None = None

    @property
    def changes(self) -> bool:
        """Tell whether the model is another than the one in its files."""
        return self != Architecture()

    def adjust(self, settings: Any) -> None:
        """Write layers, dropout and pooling into a config; raises InputError where it has no such thing."""
        text = settings.get_text_config()
        if self.layers is not None:
            if self.layers > text.num_hidden_layers:
                raise InputError(
                    "architecture.layers",
                    f"the model has {text.num_hidden_layers}, fewer than {self.layers}",
                    f"give at most {text.num_hidden_layers}",
                )
            for key in _LAYERS:
                if isinstance(getattr(text, key, None), int):
                    setattr(text, key, self.layers)
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[: self.layers]
        if self.dropout is not None:
            keys = [key for key, value in text.to_dict().items() if _DROPOUT.search(key) and _is_share(value)]
            if not keys:
                raise InputError("architecture.dropout", "this model has no place for dropout", "remove it")
            for key in keys:
                setattr(text, key, self.dropout)
        if self.pooling is not None:
            if not hasattr(text, _POOLING):
                raise InputError(
                    "architecture.pooling",
                    f"the class of {text.model_type} models has no choice of it in transformers",
                    "remove it, or choose a model that has one, such as ModernBERT",
                )
            setattr(text, _POOLING, _POOLED_AS.get(text.model_type, {}).get(self.pooling, self.pooling))

    def require(self, roles: Roles) -> None:
        """Raise InputError where a config did not bring about as many layers as are wanted."""
        found = len(roles.stacks.get("layers", ()))
        wanted = {self.layers, 2 * (self.layers or 0)}  # one stack, or encoder and decoder
        if self.layers is not None and found not in wanted:
            raise InputError("architecture.layers", f"the model keeps {found} of them", "remove it")


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add tokens; raises InputError for one that is there already."""
    known = tokenizer.get_vocab()
    if old := [token for token in tokens if token in known or tokens.count(token) > 1]:
        raise InputError("architecture.tokens", f"{old[0]!r} is a token already", "remove it")
    tokenizer.add_tokens(list(tokens))


@torch.no_grad()
def embed_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Give new tokens embeddings: the mean of the others, in the input and in an output of words alike."""
    rows = model.get_input_embeddings().num_embeddings
    if rows < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    new = tokenizer.convert_tokens_to_ids(list(tokens))
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        if table is not None:
            table.weight[new] = table.weight[: min(new)].mean(dim=0)


def _is_share(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
