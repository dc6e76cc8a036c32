"""Saving a tuned model so that plain transformers and PEFT load it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alloytune.models.adapters import save_adapter
from alloytune.models.reload import OURS
from alloytune.models.state import ModelState
from alloytune.record.atomic import new_folder


@dataclass(frozen=True)
class Places:
    """Where the parts go, and how they are loaded again.

    `source` is the pretrained model that an adapter alone belongs on, `auto_class` transformers' class for it;
    `write_more` puts files of the task's own beside a whole model.
    """

    source: str
    model: Path
    adapter: Path
    base: Path
    auto_class: str = "AutoModelForSequenceClassification"
    write_more: Callable[[Path, PreTrainedModel], None] | None = None


def save_tuned(
    state: ModelState, tokenizer: PreTrainedTokenizerBase, places: Places, card: Callable[[str], str]
) -> dict[str, bool]:
    """Save the model, and the adapters alone where some are attached; give which folders were written.

    `model/` holds everything in one (adapters merged). Adapters that cannot be merged are saved with `base/`, the
    model that they sit on, instead. `base/` is also written beside an adapter whose base is not that of the source, and
    beside several: it holds the head, which an adapter alone brings along. The model ends as it began, but for adapters
    that are merged in now. `card` writes a model card for the library that loads the folder.
    """
    if not state.attached:
        _save_model(state, tokenizer, places, places.model, card("transformers") + _how_to_use(state, places))
        return {"model": True, "adapter": False, "base": False}
    mergeable = state.mergeable
    needs_base = state.base_moved or state.reshaped or not mergeable or len(state.attached) > 1
    _save_adapters(state, tokenizer, places, card("peft") + _how_to_load(state, places, needs_base), needs_base)
    if needs_base:
        whole = state.snapshot(state.adapter_names)
        state.take_off()
        _save_model(state, tokenizer, places, places.base, card("transformers"))
        state.restore(whole)
    if mergeable:
        state.merge()
        _save_model(state, tokenizer, places, places.model, card("transformers") + _how_to_use(state, places))
    return {"model": mergeable, "adapter": True, "base": needs_base}


def _save_adapters(
    state: ModelState, tokenizer: PreTrainedTokenizerBase, places: Places, card: str, needs_base: bool
) -> None:
    """Write one adapter with the head that was trained beside it; several each into a folder of its name."""
    # from the run folder, wherever that is moved; "./" keeps it from being taken for the name of a model on a hub
    base = f"./{places.base.name}" if needs_base else places.source
    with _folder(tokenizer, places.adapter, card) as folder:
        if len(state.attached) == 1:
            save_adapter(state.model, state.attached, 0, state.head, base, folder)
            return
        for number, attachment in enumerate(state.attachments):
            own = folder / attachment.name
            own.mkdir()
            save_adapter(state.model, state.attached, number, frozenset(), base, own)


def _save_model(state: ModelState, tokenizer: PreTrainedTokenizerBase, places: Places, path: Path, card: str) -> None:
    with _folder(tokenizer, path, card) as folder:
        state.model.save_pretrained(str(folder))
        if places.write_more:
            places.write_more(folder, state.model)


@contextmanager
def _folder(tokenizer: PreTrainedTokenizerBase, path: Path, card: str) -> Iterator[Path]:
    """Give a new folder for weights, with the tokenizer and the card put beside them."""
    with new_folder(path) as folder:
        yield folder
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")


def _how_to_use(state: ModelState, places: Places) -> str:
    """Say in the model's card how it is loaded and asked."""
    folder = f'"./{places.model.name}"'
    lines = [
        f"from transformers import {places.auto_class}, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({folder})",
        f"model = {places.auto_class}.from_pretrained({folder})",
        'inputs = tokenizer(["a text"], truncation=True, return_tensors="pt")',
        *_asking(places.auto_class, getattr(state.model.config, "problem_type", None)),
    ]
    code = "\n".join(lines)
    return f"""
## Loading this model

Run from the folder that holds `{places.model.name}/`:

```python
{code}
```
"""


def _asking(auto_class: str, problem_type: str | None) -> list[str]:
    """Give the lines that ask a model and read what it answers."""
    if auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        return [
            "answers = tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=64), skip_special_tokens=True)"
        ]
    if problem_type == "multi_label_classification":
        return ["chances = model(**inputs).logits.sigmoid()  # by label; model.config.thresholds says from where on"]
    if auto_class == "AutoModelForTokenClassification":
        return [
            "numbers = model(**inputs).logits.argmax(-1)[0].tolist()",
            "tags = [model.config.id2label[number] for number in numbers]  # by token",
        ]
    if problem_type == "single_label_classification":
        return [
            "numbers = model(**inputs).logits.argmax(-1).tolist()",
            "labels = [model.config.id2label[number] for number in numbers]",
        ]
    return ["outputs = model(**inputs)"]


def _how_to_load(state: ModelState, places: Places, needs_base: bool) -> str:
    """Say in the adapter's card what it goes on, and how."""
    config = state.model.config
    on = f'"./{places.base.name}"' if needs_base else f'"{places.source}"'
    has_labels = "Classification" in places.auto_class and not needs_base
    more = f", num_labels={config.num_labels}, ignore_mismatched_sizes=True" if has_labels else ""
    padding = config.get_text_config().pad_token_id
    more += "" if needs_base or padding is None else f", pad_token_id={padding}"
    names = [attachment.name for attachment in state.attachments]
    kinds = {attachment.settings.kind for attachment in state.attachments}
    lines = [f"import alloytune.models.{kind}  # known to PEFT" for kind in OURS if kind in kinds]
    lines += ["", f"model = {places.auto_class}.from_pretrained({on}{more})"]
    if len(names) == 1:
        lines = [
            "from peft import PeftModel",
            *lines,
            f'model = PeftModel.from_pretrained(model, "./{places.adapter.name}")',
        ]
    else:
        lines += [f'model.load_adapter("./{places.adapter.name}/{name}", adapter_name="{name}")' for name in names]
        lines += [f"model.set_adapter({json.dumps(names)})"]
    lines += [f'tokenizer = AutoTokenizer.from_pretrained("./{places.adapter.name}")']
    code = "\n".join([f"from transformers import {places.auto_class}, AutoTokenizer", *lines])
    return f"""
## Loading this adapter

Run from the folder that holds `{places.adapter.name}/`{f" and `{places.base.name}/`" if needs_base else ""}:

```python
{code}
```
"""
