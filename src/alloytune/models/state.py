"""A model with what happened to it: what is attached, and which weights are no longer the pretrained ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alloytune.models import adapters
from alloytune.models.adapters import AdapterSettings, Attached
from alloytune.models.roles import Roles, find_roles
from alloytune.models.weights import Weights, copy_weights, named_weights, put_weights


@dataclass(frozen=True)
class Attachment:
    """What it takes to attach an adapter again: its settings and the base weights that it sits beside."""

    settings: AdapterSettings
    names: frozenset[str]
    seed: int


@dataclass(frozen=True)
class Snapshot:
    """A model's adapter and some of its weights, to go back to."""

    attachment: Attachment | None
    touched: frozenset[str]
    weights: Weights


class ModelState:
    """A model whose adapter comes and goes. Between stages its weights move by these verbs alone.

    `fresh` names the weights that no file held (the head, sometimes the pooler); they count as head.
    `touched` names every weight that may differ from the pretrained one: what a checkpoint must hold.
    """

    def __init__(self, model: PreTrainedModel, fresh: frozenset[str]) -> None:
        self.model = model
        self.fresh = fresh
        self.touched = self.roles().members.get("head", frozenset())
        self.attachment: Attachment | None = None
        self._attached: Attached | None = None

    def roles(self) -> Roles:
        """Find the roles of the model as it is now."""
        roles = find_roles(self.model)
        if not self.fresh:
            return roles
        head = roles.members.get("head", frozenset()) | (self.fresh & frozenset(roles.shapes))
        return replace(roles, members={**roles.members, "head": head})

    @property
    def head(self) -> frozenset[str]:
        """Give the names of the head's weights."""
        return self.roles().members.get("head", frozenset())

    @property
    def adapter_names(self) -> frozenset[str]:
        """Give the names of the attached adapter's weights."""
        return self.roles().members.get("adapter", frozenset())

    @property
    def base_moved(self) -> bool:
        """Tell whether pretrained weights other than the head may have moved."""
        return bool(self.touched - self.head - self.adapter_names)

    def attach(self, attachment: Attachment, where: str) -> None:
        """Attach an adapter; raises InputError when nothing that is selected can take it.

        The head gets none: it is trained and saved whole, and PEFT loads a layer whole or with an adapter, not both.
        """
        device = next(self.model.parameters()).device
        self._attached = adapters.attach(
            self.model, attachment.settings, attachment.names - self.head, self.roles(), attachment.seed, where
        )
        self.model.to(device)
        self.attachment = attachment
        self.touched |= self.adapter_names

    def merge(self) -> None:
        """Fold the attached adapter into the base weights."""
        assert self._attached is not None
        self.touched -= self.adapter_names
        self.touched |= adapters.merge(self.model, self._attached)
        self.attachment = self._attached = None

    def take_off(self) -> None:
        """Remove the attached adapter."""
        assert self._attached is not None
        self.touched -= self.adapter_names
        adapters.take_off(self.model, self._attached)
        self.attachment = self._attached = None

    @property
    def attached(self) -> Attached:
        """Give the attached adapter."""
        assert self._attached is not None
        return self._attached

    def merge_targets(self) -> frozenset[str]:
        """Give the weights that a merge would change, and those that it would remove."""
        if self._attached is None:
            return frozenset()
        names = frozenset(f"{target}.{part}" for target in self._attached.targets for part in ("weight", "bias"))
        return (names & frozenset(named_weights(self.model))) | self.adapter_names

    def snapshot(self, names: frozenset[str]) -> Snapshot:
        """Copy these weights, and note what is attached."""
        return Snapshot(self.attachment, self.touched, copy_weights(self.model, names))

    def restore(self, snapshot: Snapshot) -> None:
        """Go back: the adapter of then, the weights of then."""
        if self.attachment is not snapshot.attachment:
            if self.attachment is not None:
                self.take_off()
            if snapshot.attachment is not None:
                self.attach(snapshot.attachment, "rollback")
        put_weights(self.model, snapshot.weights)
        self.touched = snapshot.touched

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Put saved weights in place."""
        put_weights(self.model, weights)

    def touched_weights(self) -> Weights:
        """Copy every weight that may differ from the pretrained one."""
        return copy_weights(self.model, self.touched)

    def to(self, device: torch.device) -> None:
        """Move the model to a device."""
        self.model.to(device)
