"""What was probably meant: the nearest valid word for a wrong one."""

import difflib
from collections.abc import Sequence

from alloytune.recipe import shape
from alloytune.recipe.places import KeyPath, Mistake

# Words of other tools that people will type, and our word for them.
SYNONYMS = {
    "adapter_name": "name",
    "adapter_path": "folder",
    "adapters": "attach",
    "badam_switch_interval": "every",
    "base_model": "model",
    "batch_size": "batch",
    "bf16": "precision",
    "dataset": "data",
    "datasets": "data",
    "description": "about",
    "detach": "drop",
    "dev": "validation",
    "early_stopping_patience": "patience",
    "epoch": "epochs",
    "eval": "validation",
    "eval_file": "validation",
    "eval_steps": "evaluate",
    "fp16": "precision",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_clipping": "clip",
    "gradual_unfreezing": "unfreeze",
    "houlsby": "bottleneck",
    "init_lr": "rate",
    "label_column": "label",
    "label_smoothing_factor": "label_smoothing",
    "layerwise_lr_decay": "layer_decay",
    "learning_rate": "rate",
    "learning_rates": "rates",
    "lisa_step_interval": "every",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_r": "rank",
    "loraplus_lr_ratio": "plus",
    "lr": "rate",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "lrs": "rates",
    "max_epochs": "epochs",
    "max_grad_norm": "clip",
    "max_len": "max_length",
    "max_samples": "rows",
    "max_seq_length": "max_length",
    "max_steps": "updates",
    "max_time": "minutes",
    "max_train_samples": "rows",
    "microbatch": "micro_batch",
    "model_name": "model",
    "model_name_or_path": "model",
    "model_path": "model",
    "n_epochs": "epochs",
    "ner_tags": "tags",
    "non_linearity": "activation",
    "num_epochs": "epochs",
    "num_steps": "updates",
    "num_train_epochs": "epochs",
    "oft_block_size": "block",
    "on_fail": "otherwise",
    "optim": "optimizer",
    "parameters": "train",
    "params": "train",
    "per_device_train_batch_size": "micro_batch",
    "pfeiffer": "bottleneck",
    "phases": "stages",
    "prefix_length": "length",
    "prefix_tuning": "prefix",
    "pretrained": "model",
    "pretrained_model_name_or_path": "model",
    "r": "rank",
    "random_seed": "seed",
    "rdrop": "r_drop",
    "reduction_factor": "reduction",
    "reinit_layers": "reinit",
    "reinitialize": "reinit",
    "remove": "drop",
    "retries": "times",
    "save_best": "keep",
    "scheduler": "schedule",
    "select": "train",
    "selection": "train",
    "sentence": "text",
    "sentence1": "text",
    "sentence2": "text_pair",
    "stage": "stages",
    "steps": "updates",
    "target_modules": "on",
    "task_name": "task",
    "task_type": "task",
    "test_file": "test",
    "test_size": "test",
    "text_b": "text_pair",
    "text_column": "text",
    "time": "minutes",
    "train_batch_size": "batch",
    "train_file": "train",
    "trainable": "train",
    "unload": "drop",
    "use_dora": "dora",
    "use_rslora": "rslora",
    "val": "validation",
    "valid": "validation",
    "validation_file": "validation",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "wd": "weight_decay",
    "words": "tokens",
}

# Values that other tools name, and our word for them.
VALUES = {
    "adamw_torch": "adamw",
    "wsd": "stable-then-decay",
}

# Words of other tools that have no counterpart here, and what to write instead.
REMARKS = {
    "ema": "`combine: {how: running-average}` averages the weights of a stage's evaluations",
    "freeze": "`train` names what moves, and everything else stays as it is",
    "frozen": "`train` names what moves, and everything else stays as it is",
    "gradient_accumulation_steps": "`batch` is the whole update, and `micro_batch` what fits into memory at once",
    "l2_sp": "`decay_to: pretrained` makes `weight_decay` lead back to the pretrained values",
    "swa": "`combine: {how: running-average}` averages the weights of a stage's evaluations",
}


def nearest_word(word: str, known: Sequence[str], cutoff: float = 0.5) -> str | None:
    """Give the known word that is spelt most like another, or holds it; None where nothing is near."""
    bare = word.lower().replace("-", "_")
    if VALUES.get(bare) in known:
        return VALUES[bare]
    close = difflib.get_close_matches(bare, known, n=1, cutoff=cutoff)
    holding = [each for each in known if bare and bare in each]
    return next(iter(close or holding), None)


def unknown_key(path: KeyPath) -> Mistake:
    """Say what was probably meant by a key that is not known where it stands, the last one of `path`."""
    key, parent = str(path[-1]), path[:-1]
    known = shape.keys(parent)
    if set(key) & set("()[]|"):
        message = (
            f"unknown key {key!r}; it looks like a piece of a selection: inside {{...}} one with a comma needs quotes"
        )
        return Mistake(path, message, at_key=True)
    bare = key.lower().replace("-", "_")
    if bare in REMARKS:
        return Mistake(path, f"unknown key {key!r}; {REMARKS[bare]}", at_key=True)
    if key == "repeat" and key in parent:
        message = "a block cannot stand in a block; write its stages out in the outer one"
        return Mistake(path, message, at_key=True, hides=((*parent, "name"),))
    if bare in {word for node in shape.at(parent) for word in (*node.get("enum", ()), node.get("const"))}:
        message = f"{key!r} takes no settings; write `{parent[-1]}: {key}`"
        return Mistake(path, message, at_key=True, hides=tuple((*parent, other) for other in known))
    if key in known:  # of another kind of entry
        message = f"{key!r} cannot stand beside `repeat`; it belongs in the stages of the block"
        return Mistake(path, message, at_key=True)
    word = SYNONYMS.get(bare, bare)
    homes = _homes(word, parent)
    close = word if word in known else None if homes else _nearest_key(bare, known)
    if close:
        message = f"unknown key {key!r}; did you mean {close!r}?"
        return Mistake(path, message, at_key=True, hides=((*parent, close),))
    if not homes:
        there_is = f"there are {', '.join(known)}" if known else "nothing may stand below it"
        return Mistake(path, f"unknown key {key!r}; {there_is}", at_key=True)
    start = tuple("[]" if isinstance(part, int) else part for part in parent)
    message = f"unknown key {key!r}; {_belongs(word, homes, start)}"
    hidden = homes[0][len(start) :]
    is_below = homes[0][: len(start)] == start and "[]" not in hidden
    return Mistake(path, message, at_key=True, hides=((*parent, hidden[0]),) if is_below else ())


def _nearest_key(bare: str, known: tuple[str, ...]) -> str | None:
    """Give the key spelt most like a word, or the one whose synonym is."""
    meanings = {synonym: key for synonym, key in SYNONYMS.items() if key in known} | {key: key for key in known}
    close = difflib.get_close_matches(bare, meanings, n=1, cutoff=0.7)
    return meanings[close[0]] if close else None


def _homes(word: str, parent: KeyPath) -> list[KeyPath]:
    """Give the mappings that have a key: those below `parent` if there are any, else all."""
    start = tuple("[]" if isinstance(part, int) else part for part in parent)
    homes = shape.homes().get(word, [])
    below = [home for home in homes if home[: len(start)] == start]
    return (below or homes)[:2]


def _belongs(word: str, homes: list[KeyPath], start: KeyPath) -> str:
    if homes[0][: len(start)] == start and "[]" not in homes[0][len(start) :]:
        nested = f"{word}: ..."
        for part in reversed(homes[0][len(start) :]):
            nested = f"{part}: {{{nested}}}"
        return f"did you mean '{nested}'?"
    return f"{word!r} belongs {' or '.join(map(_name_home, homes))}"


def _name_home(home: KeyPath) -> str:
    words = [str(part) for part in home if part not in ("stages", "[]")]
    inside = f"under `{'.'.join(words)}`" if words else ""
    if "stages" in home:
        return f"in a stage, {inside}" if inside else "in a stage"
    return inside or "at the top of the recipe"
