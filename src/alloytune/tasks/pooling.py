"""One vector per text: how a model's hidden states are pooled, in the files of sentence-transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers.utils import cached_file

from alloytune.errors import InputError

How = Literal["mean", "cls", "last", "max"]

_FLAGS: dict[How, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens",
}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Pooling:
    """How hidden states become one vector of length 1 per text."""

    how: How = "mean"

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool `states` [texts, tokens, width] where `mask` [texts, tokens] is 1; give [texts, width], in float32."""
        with torch.autocast(states.device.type, enabled=False):  # which takes sums of products in 16 bits
            return self._pool(states, mask)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        states, real = states.float(), mask.bool()
        places = torch.arange(mask.shape[1], device=mask.device)
        if self.how == "mean":
            weights = real.float()
            pooled = torch.einsum("abc,ab->ac", states, weights) / weights.sum(1, keepdim=True).clamp(min=1)
        elif self.how == "max":
            pooled = states.masked_fill(~real[..., None], -torch.inf).amax(1)
        else:  # the first token or the last, wherever the padding is
            chosen = torch.where(real, places, -1).argmax(1) if self.how == "last" else real.int().argmax(1)
            pooled = states[torch.arange(len(states), device=states.device), chosen]
        return normalize(pooled, dim=-1)


def read_pooling(source: str) -> Pooling | None:
    """Read how a folder or a hub's model says that it is pooled; None where it has no files of sentence-transformers.

    Raises InputError where it says something that is not done here, such as a dense layer behind the pooling.
    """
    modules = _read(source, "modules.json")
    if modules is None:
        return None
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if strange := [kind for kind in kinds if kind not in _KNOWN_MODULES]:
        raise _unknown(source, f"a module {strange[0]}")
    paths = [module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    settings = _read(source, f"{paths[0]}/config.json") if len(paths) == 1 else None
    if settings is None:
        raise _unknown(source, f"{len(paths)} poolings" if len(paths) != 1 else "a pooling without config.json")
    return Pooling(_how(settings, source))


def read_prompts(source: str) -> tuple[str, str]:
    """Read what a folder or a hub's model puts before queries and before documents; nothing where it does not say."""
    found = _read(source, "config_sentence_transformers.json")
    prompts = found.get("prompts") if isinstance(found, dict) else None
    known = prompts if isinstance(prompts, dict) else {}
    document = next((known[name] for name in ("document", "passage", "corpus") if known.get(name)), "")
    return str(known.get("query") or ""), str(document)


def _how(settings: dict[str, Any], source: str) -> How:
    """Find the one way of pooling, in the old form (a flag for each) or the new (a name)."""
    named = settings.get("pooling_mode")
    if isinstance(named, str):
        short = "last" if named == "lasttoken" else named
        chosen: list[How] = [how for how in get_args(How) if how == short]
        shown = named
    else:
        flags = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
        chosen = [how for how, flag in _FLAGS.items() if flags == [flag]]
        shown = " and ".join(flags) or "none"
    if not chosen:
        raise _unknown(source, f"pooling {shown}")
    return chosen[0]


def write_sentence_files(
    folder: Path, pooling: Pooling, width: int, max_length: int | None, prompts: dict[str, str]
) -> None:
    """Write what sentence-transformers needs beside a model's own files. `prompts` go before queries and documents."""
    modules = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(modules)
    ]
    flags = {flag: how == pooling.how for how, flag in _FLAGS.items()}
    limit = {} if max_length is None else {"max_seq_length": max_length}
    files: dict[str, Any] = {
        "modules.json": listed,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **flags},
        "sentence_bert_config.json": {**limit, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "2_Normalize").mkdir(exist_ok=True)


def _read(source: str, name: str) -> Any:
    found = cached_file(
        source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError:
        remedy = "mend it, or name the pooling in the recipe"
        raise InputError("model", f"{name} of {source!r} is no JSON", remedy) from None


def _unknown(source: str, what: str) -> InputError:
    return InputError(
        "model",
        f"modules.json of {source!r} names {what}, which is not known here",
        f"name the pooling in the recipe ({', '.join(get_args(How))}), or use another model",
    )
