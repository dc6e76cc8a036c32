"""Load saved folders with nothing but transformers and PEFT, in a process of its own, and write their outputs.

Run as `python reload.py` by `alloytune.models.verify`, which says on its input, when it is time, what to load.
"""

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

OURS = ("bottleneck", "prefix")  # kinds that PEFT knows once the module of their name is imported


def load_folder(
    name: str, folders: dict[str, str], auto_class: str, names: list[str], source: str, config: dict[str, Any]
) -> Any:
    """Load `model` with transformers, or `adapter` on its base, in float32; `names` are those of the adapters."""
    auto = getattr(transformers, auto_class)
    if name == "model":
        return auto.from_pretrained(folders["model"], dtype=torch.float32)
    adapter = Path(folders["adapter"])
    if "base" in folders:
        base = auto.from_pretrained(folders["base"], dtype=torch.float32)
    else:  # the pretrained model knows nothing of this task: not its labels, sometimes not how it is padded
        padding = transformers.AutoTokenizer.from_pretrained(adapter).pad_token_id
        own = transformers.AutoConfig.from_pretrained(source)
        known = {key: value for key, value in config.items() if hasattr(own, key)}
        base = auto.from_pretrained(
            source, dtype=torch.float32, ignore_mismatched_sizes=True, pad_token_id=padding, **known
        )
    return put_adapters(base, adapter, names)


def put_adapters(base: Any, folder: Path, names: list[str]) -> Any:
    """Put saved adapters on their base: one with PEFT, several with transformers, in the order in which they came."""
    import peft

    configs = (
        [folder / "adapter_config.json"] if len(names) == 1 else [folder / n / "adapter_config.json" for n in names]
    )
    for kind in {json.loads(config.read_text(encoding="utf-8"))["peft_type"].lower() for config in configs}:
        if kind in OURS:
            importlib.import_module(f"alloytune.models.{kind}")  # makes the method known to PEFT
    if len(names) == 1:
        return peft.PeftModel.from_pretrained(base, str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are what is meant
        for name in names:
            base.load_adapter(str(folder / name), adapter_name=name)
    base.set_adapter(names)
    return base


@torch.inference_mode()
def main(request_file: str, answer_file: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    inputs = {key: torch.tensor(value) for key, value in request["inputs"].items()}
    config = request["config"]
    if "id2label" in config:
        config["id2label"] = {int(number): label for number, label in config["id2label"].items()}
    answer = {}
    for name, folder in request["folders"].items():
        if name == "base":
            continue
        try:
            more = (request["auto_class"], request["adapters"], request["source"], config)
            found = load_folder(name, request["folders"], *more).eval()(**inputs)
            answer[name] = (found.logits if "logits" in found else found[0]).float().numpy()
        except Exception as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise SystemExit(f"{folder}: {type(error).__name__}: {first}") from error
    np.savez(answer_file, **answer)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.PreTrainedModel  # noqa: B018  # whose import takes seconds, while there is nothing to load yet
    asked = sys.stdin.read()
    if asked:  # and the run has not ended for another reason
        main(*json.loads(asked))
