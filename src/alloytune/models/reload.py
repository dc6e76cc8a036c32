"""Load saved folders with nothing but transformers and PEFT, in a process of its own, and write their outputs.

Run as `python reload.py REQUEST.json ANSWER.npz` by `alloytune.models.save.verify_saved`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def load_folder(name: str, folders: dict[str, str], source: str, config: dict[str, Any]) -> Any:
    """Load `model` with transformers, or `adapter` with PEFT on its base, in float32."""
    auto = transformers.AutoModelForSequenceClassification
    if name == "model":
        return auto.from_pretrained(folders["model"], dtype=torch.float32)
    import peft

    if json.loads((Path(folders["adapter"]) / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK":
        import alloytune.models.bottleneck  # noqa: F401 - makes the method known to PEFT
    settings = {} if "base" in folders else config
    base = auto.from_pretrained(folders.get("base", source), dtype=torch.float32, **settings)
    return peft.PeftModel.from_pretrained(base, folders["adapter"])


@torch.inference_mode()
def main(request_file: str, answer_file: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    inputs = {key: torch.tensor(value) for key, value in request["inputs"].items()}
    config = request["config"]
    config["id2label"] = {int(number): label for number, label in config["id2label"].items()}
    answer = {}
    for name in request["folders"]:
        if name != "base":
            model = load_folder(name, request["folders"], request["source"], dict(config)).eval()
            answer[name] = model(**inputs).logits.float().numpy()
    np.savez(answer_file, **answer)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(*sys.argv[1:])
