"""Loading a pretrained model and its tokenizer, safely: safetensors only, no code from the model's folder."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alloytune.errors import InputError

_NO_LIMIT = 100_000  # tokenizers without a limit of their own carry 1e30


def quiet() -> None:
    """Keep transformers' progress bars and advice off the terminal; errors still show."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one that has no padding token pads with its end token."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise _cannot_load(source, "tokenizer", error) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError("model", f"the tokenizer of {source!r} has no padding and no end token", "add one to it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    auto_class: Any, source: str, tokenizer: PreTrainedTokenizerBase, seed: int, **config: Any
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Load a model in float32 with the task's head on it; also give the names of the weights that no file held.

    `auto_class` is a transformers Auto class, `config` what the task sets in the model's config. Weights that the
    files do not hold (the head) are drawn from `seed` before anything else draws random numbers.
    """
    torch.manual_seed(seed)
    try:
        settings = AutoConfig.from_pretrained(source, trust_remote_code=False, **config)
        if settings.get_text_config().pad_token_id is None:
            settings.get_text_config().pad_token_id = tokenizer.pad_token_id
        model, info = auto_class.from_pretrained(
            source,
            config=settings,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _cannot_load(source, "model", error) from error
    _require_embeddings(model, tokenizer, source)
    fresh = frozenset(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    return model, fresh


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int | None:
    """Give the tokens per example that the model can read, at most `wanted`; None where nothing limits them."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in _OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    limits = [tokenizer.model_max_length, positions]
    known = [limit for limit in limits if limit and limit < _NO_LIMIT]
    limit = min(known) if known else None
    if wanted and limit and wanted > limit:
        raise InputError("max_length", f"{wanted} tokens are more than the model reads", f"give at most {limit}")
    return wanted or limit


# these count positions from pad_token_id + 1, so their tables hold that many rows more than tokens
_OFFSET_POSITIONS = frozenset(("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet", "esm"))


def _require_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    embeddings = model.get_input_embeddings()
    rows = getattr(embeddings, "num_embeddings", None)
    if rows is not None and len(tokenizer) > rows:
        raise InputError(
            "model",
            f"the tokenizer of {source!r} has {len(tokenizer)} tokens, the model embeds only {rows}",
            "use the tokenizer that belongs to the model",
        )


def _cannot_load(source: str, part: str, error: Exception) -> InputError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    folder = Path(source)
    if folder.is_dir() and list(folder.glob("*.bin")) and not list(folder.glob("*.safetensors")):
        return InputError(
            "model",
            f"{source!r} holds pickled weights only (*.bin), which can run code when read",
            "save it as safetensors first, with save_pretrained in an environment that you trust it in",
        )
    if "Unrecognized configuration class" in first:
        return InputError("model", f"{source!r} has no head for this task in transformers", "choose another model")
    remedy = "give a model folder, a hub id (with access to the hub) or package:NAME/PATH"
    return InputError("model", f"the {part} of {source!r} cannot be loaded ({first})", remedy)
