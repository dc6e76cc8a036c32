"""Loading a pretrained model and its tokenizer, safely: safetensors only, no code from the model's folder."""

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alloytune.errors import InputError, first_line
from alloytune.models.architecture import Architecture, add_tokens, embed_tokens
from alloytune.models.roles import Roles, find_roles
from alloytune.models.weights import Weights, named_weights

AS_IT_IS = Architecture()
_NO_LIMIT = 100_000  # tokenizers without a limit of their own carry 1e30


def quiet() -> None:
    """Keep transformers' progress bars and advice off the terminal; errors still show.

    So is its warning of a property that PEFT 0.21 reads of every model.
    """
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_tokenizer(source: str, tokens: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """Load a tokenizer and add new tokens; one that has no padding token pads with its end token."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # a damaged folder fails in many libraries' ways
        raise _cannot_load(source, "tokenizer", error) from error
    _require_words(tokenizer, source)
    tokenizer.init_kwargs.pop("auto_map", None)  # names code that is not run
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError("model", f"the tokenizer of {source!r} has no padding and no end token", "add one to it")
        tokenizer.pad_token = tokenizer.eos_token
    if tokens:
        add_tokens(tokenizer, tokens)
    return tokenizer


def _require_words(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise an InputError for what transformers makes where the tokenizer's files are missing: it knows no word."""
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) <= 1:  # some have a blank beside their special tokens
        what = f"{source!r} has no tokenizer, or one without words"
        raise InputError("model", what, "put the files of the model's tokenizer beside its weights")


def require_config(source: str) -> None:
    """Raise an InputError for a model whose config cannot be read."""
    try:
        AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # a damaged folder fails in many libraries' ways
        raise _cannot_load(source, "model", error) from error


def load_model(
    auto_class: Any,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    architecture: Architecture = AS_IT_IS,
    **config: Any,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Load a model in float32 with the task's head on it; also give the names of the weights that no file held.

    `auto_class` is a transformers Auto class, `config` what the task sets in the model's config. Weights that the
    files do not hold (the head) are drawn from `seed` before anything else draws random numbers; a pooler that no head
    reads is not named. The outputs of a head that was trained for other labels are drawn anew. `architecture` changes
    the model on the way. The tokenizer of a model that writes is given an end token where it has none.
    """
    torch.manual_seed(seed)
    try:
        own = AutoConfig.from_pretrained(source, trust_remote_code=False)
        settings = _task_config(source, tokenizer, config)
        architecture.adjust(settings)
        model, info = auto_class.from_pretrained(
            source,
            config=settings,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except InputError:
        raise
    except Exception as error:  # a damaged folder fails in many libraries' ways
        raise _cannot_load(source, "model", error) from error
    if model.can_generate():
        _give_end(model, tokenizer)
    _require_embeddings(model, len(tokenizer) - len(architecture.tokens), source)
    if architecture.tokens:
        embed_tokens(model, tokenizer, architecture.tokens)
    fresh = frozenset(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    roles = find_roles(model)
    _require_body(fresh, roles, source)
    architecture.require(roles)
    if not roles.members["head"]:  # which alone reads a pooler
        fresh -= roles.members.get("pooler", frozenset())
    if _names_other_labels(own, model.config):
        fresh |= _redraw_outputs(model, roles, seed)
    return model, fresh


def drawn_weights(model: PreTrainedModel, seed: int) -> Weights:
    """Draw all weights of a model without adapters as its class does where none are pretrained, by canonical names."""
    torch.manual_seed(seed)
    drawn = type(model)._from_config(deepcopy(model.config), dtype=torch.float32)
    return {name: weight.detach() for name, weight in named_weights(drawn).items()}


@torch.no_grad()
def start_outputs(model: PreTrainedModel, fresh: frozenset[str], outputs: Sequence[float]) -> None:
    """Let a fresh head begin with these outputs, by the bias of its last layer; one without a bias stays as it is."""
    biases = [
        weight
        for name, weight in model.named_parameters()
        if name in fresh and name.endswith("bias") and len(weight) == len(outputs)
    ]
    for bias in biases[-1:]:
        bias.copy_(torch.tensor(outputs))


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int | None:
    """Give the tokens per example that the model can read, at most `wanted`; None where nothing limits them.

    The tokenizer is told the model's own limit, which its files may not know.
    """
    known = [limit for limit in (tokenizer.model_max_length, _num_positions(model)) if 0 < limit < _NO_LIMIT]
    limit = min(known, default=None)
    if wanted and limit and wanted > limit:
        raise InputError("max_length", f"{wanted} tokens are more than the model reads", f"give at most {limit}")
    tokenizer.model_max_length = limit or tokenizer.model_max_length
    return wanted or limit


def _num_positions(model: PreTrainedModel) -> int:
    """Give the positions that the model has; 0 where it does not count them.

    RoBERTa and its kin count from behind the padding row of their table, which so holds more rows than tokens.
    """
    for name, module in model.named_modules():
        padding, table = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if "position" in name and padding is not None and isinstance(table, Tensor):
            return int(table.shape[0]) - int(padding) - 1
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions or 0  # XLNet says -1


def _task_config(source: str, tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any]) -> Any:
    """Read a model's config with what the task sets in it, and with the padding that the tokenizer does."""
    settings = AutoConfig.from_pretrained(source, trust_remote_code=False, **config)
    for key, value in config.items():
        if not hasattr(settings, key):  # what transformers does not know of, and so has passed over
            setattr(settings, key, value)
    text = settings.get_text_config()
    if text.pad_token_id != tokenizer.pad_token_id:  # decoders find the last token of a text by it
        text.pad_token_id = tokenizer.pad_token_id
    if hasattr(settings, "auto_map"):  # names code that is not run, and that a saved model would not have beside it
        del settings.auto_map
    return settings


def _give_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let [SEP] end what is written where a tokenizer has no end token, as BERT's: nothing else would ever end it."""
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    for settings in (model.config, model.generation_config):
        if getattr(settings, "eos_token_id", None) is None:  # two configs in one have none of their own
            settings.eos_token_id = tokenizer.eos_token_id


def _names_other_labels(own: Any, settings: Any) -> bool:
    """Tell whether a source was trained for other labels, or in another order; "LABEL_0" names none."""
    before = dict(own.id2label)
    return before != dict(settings.id2label) and not all(str(name).startswith("LABEL_") for name in before.values())


@torch.no_grad()
def _redraw_outputs(model: PreTrainedModel, roles: Roles, seed: int) -> frozenset[str]:
    """Draw the head's last layer anew; give the names of its weights."""
    names = [name for name in roles.shapes if name in roles.members["head"]]
    outputs = {name.rpartition(".")[0] for name in names if roles.shapes[name][0] == model.config.num_labels}
    torch.manual_seed(seed)
    for path in sorted(outputs):
        module = model.get_submodule(path)
        for weight in module.parameters(recurse=False):
            weight._is_hf_initialized = False  # else transformers leaves it as it is
        model._init_weights(module)
    return frozenset(name for name in names if name.rpartition(".")[0] in outputs)


def _require_body(fresh: frozenset[str], roles: Roles, source: str) -> None:
    """Refuse a model whose files lack pretrained weights: it would train from random numbers and say nothing."""
    body = roles.members.get("layers", frozenset()) | roles.members.get("embeddings", frozenset())
    lost = sorted(fresh & body)
    if lost:
        raise InputError(
            "model",
            f"the files of {source!r} lack {len(lost)} pretrained weights, or hold them in another shape "
            f"(such as {lost[0]})",
            "get the whole model, with the config.json that belongs to it",
        )


def _require_embeddings(model: PreTrainedModel, num_tokens: int, source: str) -> None:
    """Refuse a tokenizer that has, without new tokens, more than the model embeds."""
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # CANINE reads characters and has no table of tokens
        return
    if rows is not None and num_tokens > rows:
        raise InputError(
            "model",
            f"the tokenizer of {source!r} has {num_tokens} tokens, the model embeds only {rows}",
            "use the tokenizer that belongs to the model",
        )


def _cannot_load(source: str, part: str, error: Exception) -> InputError:
    first = first_line(error)
    folder = Path(source)
    if folder.is_dir() and list(folder.glob("*.bin")) and not list(folder.glob("*.safetensors")):
        return InputError(
            "model",
            f"{source!r} holds pickled weights only (*.bin), which can run code when read",
            "save it as safetensors first, with save_pretrained in an environment that you trust it in",
        )
    if "Unrecognized configuration class" in first:
        return InputError("model", f"{source!r} has no head for this task in transformers", "choose another model")
    if "trust_remote_code" in str(error):
        return InputError(
            "model",
            f"{source!r} needs code of its own, which Alloytune does not run",
            "choose a model whose architecture is part of transformers",
        )
    remedy = "give a model folder, a hub id (with access to the hub) or package:NAME/PATH"
    return InputError("model", f"the {part} of {source!r} cannot be loaded ({first})", remedy)
