"""An adapter that was trained elsewhere: a folder in PEFT's format."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from alloytune.errors import InputError
from alloytune.models.adapters import AS_WRITTEN
from alloytune.models.methods import METHODS, Method, Site
from alloytune.models.roles import Roles
from alloytune.models.tree import canonical_name
from alloytune.models.weights import Weights, named_weights

WEIGHTS = "adapter_model.safetensors"
_BEGINNINGS_IN_PLACE = (True, False, "gaussian", "orthogonal")  # LoRA that took nothing out of the base


@dataclass(frozen=True)
class FolderSettings(Method):
    """The adapter in a folder: its kind, rank and layers are those in its config; its weights come from there."""

    path: str
    kind: str
    layers = "layer that the adapter in the folder is for"

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        """As its kind is."""
        return METHODS[self.kind].mergeable

    def targets(self, model: nn.Module, roles: Roles, names: frozenset[str]) -> list[str]:
        """Give the layers that its config names, `names` aside."""
        config = PeftConfig.from_pretrained(self.path)
        return [path for path, _ in model.named_modules() if path and check_target_module_exists(config, path)]

    def config(self, site: Site, *, fresh: bool) -> PeftConfig:
        """Read the config; raises ValueError where its base cannot be had without it."""
        config = PeftConfig.from_pretrained(self.path)
        begun = getattr(config, "init_lora_weights", True)
        if begun not in _BEGINNINGS_IN_PLACE:
            raise ValueError(f"it began by {begun!r}, which moves the base; convert it to plain LoRA with PEFT")
        if getattr(config, "rank_pattern", None) and self.kind == "adalora":
            raise ValueError("its layers were cut to ranks of their own; merge it into the model with PEFT")
        config.inference_mode = False
        config.modules_to_save = None
        return config

    def weights(self, expected: dict[str, Tensor], model: nn.Module, head: frozenset[str], where: str) -> Weights:
        """Read the weights; raises InputError where they belong to another model.

        A head stays behind: whose labels it knows, the folder does not say. Other whole layers must be the model's own.
        """
        try:
            found = load_file(Path(self.path) / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise InputError(where, f"the weights in {self.path!r} cannot be read ({error})", "get it anew") from error
        saved = {name.replace(AS_WRITTEN[1], AS_WRITTEN[0]): value for name, value in found.items()}
        own = {  # tied weights by every name: a saved head holds them under its own
            f"base_model.model.{canonical_name(name)}": weight
            for name, weight in model.named_parameters(remove_duplicate=False)
        }
        beside = {name for name in saved.keys() & own.keys() if torch.equal(saved[name], own[name].cpu())}
        of_head = {weight for name, weight in named_weights(model).items() if name in head}
        beside |= {name for name, weight in own.items() if weight in of_head}
        odd = sorted((saved.keys() - beside) ^ expected.keys())
        odd += sorted(name for name in saved.keys() & expected.keys() if saved[name].shape != expected[name].shape)
        if odd:
            raise InputError(
                where,
                f"the adapter in {self.path!r} is for another model: {len(odd)} weights are missing, too many or of "
                f"another shape (such as {odd[0].removeprefix('base_model.model.')})",
                "attach it to the model that it was trained on",
            )
        return {name: saved[name] for name in expected}


def read_folder(path: str, where: str) -> FolderSettings:
    """Look into a folder; raises InputError where it holds no adapter that can be attached and trained on."""
    folder = Path(path)
    if not (folder / "adapter_config.json").exists():
        raise InputError(
            where, f"{path!r} holds no adapter_config.json", "name the folder that PEFT saved an adapter in"
        )
    if not (folder / WEIGHTS).exists():
        raise InputError(where, f"{path!r} holds no {WEIGHTS}", "save the adapter as safetensors; pickles can run code")
    try:
        peft_type = PeftConfig.from_pretrained(path).peft_type
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(where, f"the adapter_config.json in {path!r} cannot be read ({error})", "mend it") from error
    kind = str(getattr(peft_type, "value", peft_type)).lower()
    if kind not in METHODS:
        raise InputError(where, f"{path!r} holds a {kind} adapter", f"there are {', '.join(METHODS)}")
    return FolderSettings(path, kind)
