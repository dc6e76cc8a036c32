"""A model with what happened to it: what is attached, and which weights are no longer the pretrained ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alloytune.models import adapters
from alloytune.models.adapters import Attached, Attachment
from alloytune.models.heads import Heads
from alloytune.models.load import drawn_weights
from alloytune.models.roles import Roles, find_roles
from alloytune.models.tree import canonical_name
from alloytune.models.weights import Weights, put_weights


@dataclass(frozen=True)
class Snapshot:
    """A model's head and adapters and some of its weights, to go back to. Weights and `touched` go by stored names."""

    head: str
    attachments: tuple[Attachment, ...]
    touched: frozenset[str]
    weights: Weights


class ModelState:
    """A model whose heads and adapters come and go. Between stages its weights move by these verbs alone.

    `heads` holds a model for each thing that is learned, all over one body; `model` is the current one.
    `fresh` names the weights that no file held (the head, sometimes the pooler); they count as head.
    `touched` names every weight that may differ from the pretrained one: what a checkpoint must hold.
    `reshaped`: the model is another than the one in its source's files, which its adapters so cannot sit on.
    `attached` are the adapters in the order in which they came, where several stand on a layer from the inside out.
    """

    def __init__(self, model: PreTrainedModel, fresh: frozenset[str], *, reshaped: bool = False) -> None:
        self.heads = Heads(model, fresh)
        self.reshaped = reshaped
        self.touched = self.roles().members["head"]
        self.attached: tuple[Attached, ...] = ()

    @property
    def model(self) -> PreTrainedModel:
        """Give the current model."""
        return self.heads.head.model

    @property
    def fresh(self) -> frozenset[str]:
        """Give the weights of the current model that no file held."""
        return self.heads.head.fresh

    def add_head(self, name: str, model: PreTrainedModel, fresh: frozenset[str]) -> None:
        """Add a model with another head over the same body."""
        self.heads.add(name, model, fresh)

    def turn_to(self, name: str, beside: Sequence[str] = ()) -> None:
        """Make a head the current one, with exactly these `beside` it. They count as touched, as every head does.

        Where another becomes the current one, adapters must be merged or taken off before: they belong to what they
        were trained for.
        """
        if name == self.heads.current and tuple(beside) == self.heads.beside:
            return
        self._stand_beside(())
        if name != self.heads.current:
            if self.attached:
                raise ValueError("adapters are attached")
            self.touched = self.heads.turn_to(name, self.touched) | self.head
        self._stand_beside(beside)
        self.touched |= self.beside_names

    def _stand_beside(self, names: Sequence[str]) -> None:
        """Change what stands beside the current head; what is known of any weight goes by its stored name."""
        stored = self.heads.stored(self.touched)
        self.heads.stand_beside(names)
        self.heads.note(stored)
        self.touched = self.heads.own_names(stored)

    @property
    def beside_names(self) -> frozenset[str]:
        """Give the names of what the heads beside the current one have for themselves."""
        return frozenset[str]().union(*map(self.heads.own_weights, self.heads.beside))

    def roles(self) -> Roles:
        """Find the roles of the model as it is now; what stands beside its head is head, too."""
        roles = find_roles(self.model)
        beside = self.beside_names
        if not self.fresh and not beside:
            return roles
        head = roles.members["head"] | (self.fresh & frozenset(roles.shapes)) | beside
        everywhere = ("all", "norm", "bias")
        members = {role: names if role in everywhere else names - beside for role, names in roles.members.items()}
        return replace(roles, members={**members, "head": head})

    @property
    def head(self) -> frozenset[str]:
        """Give the names of the head's weights."""
        return self.roles().members["head"]

    @property
    def adapter_names(self) -> frozenset[str]:
        """Give the names of the weights of all attached adapters."""
        return self.roles().members.get("adapter", frozenset())

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """Give what is attached."""
        return tuple(attached.attachment for attached in self.attached)

    @property
    def base_moved(self) -> bool:
        """Tell whether pretrained weights other than the head may have moved."""
        members = self.roles().members
        return bool(self.touched.difference(*(members.get(role, ()) for role in ("head", "adapter"))))

    @property
    def mergeable(self) -> bool:
        """Tell whether all that is attached can be folded into the base weights."""
        return all(attachment.settings.mergeable for attachment in self.attachments)

    def attach(self, attachment: Attachment, where: str, *, fresh: bool = True) -> frozenset[str]:
        """Attach an adapter beside those that are; give the base weights that it begins by moving (PiSSA).

        One that is not `fresh` is put back, and gets its weights afterwards.
        Raises InputError when nothing that is selected can take it.
        """
        device = next(self.model.parameters()).device
        attached = adapters.attach(self.model, attachment, self.roles(), where, fresh=fresh)
        self.attached = (*self.attached, attached)
        adapters.activate(self.model, [each.name for each in self.attachments])
        self.model.to(device)
        self.heads.stand_beside(self.heads.beside)  # with this adapter
        self.touched |= self.adapter_names
        moves = fresh and attachment.settings.moves_base
        return adapters.base_weights(self.model, [attached]) if moves else frozenset()

    def merge(self, names: Iterable[str] | None = None) -> None:
        """Fold adapters into the base weights: those of these names, or all."""
        leaving = self._chosen(names)
        self._forget(leaving)
        self.touched |= adapters.merge(self.model, leaving)

    def reinit(self, names: frozenset[str], seed: int) -> None:
        """Draw weights of the base or the head anew, as if they had never been trained."""
        if names:
            drawn = drawn_weights(self.model, seed)
            self.put({name: drawn[name] for name in names})
            self.touched |= names

    def take_off(self, names: Iterable[str] | None = None) -> None:
        """Remove adapters: those of these names, or all."""
        leaving = self._chosen(names)
        self._forget(leaving)
        adapters.take_off(self.model, leaving)

    def at_stake(self, names: Iterable[str]) -> frozenset[str]:
        """Give the weights that are lost when adapters are merged or removed: all adapters', and their base weights.

        The other adapters are among them, as going back puts all on anew, in order.
        """
        leaving = self._chosen(names)
        return adapters.base_weights(self.model, leaving) | self.adapter_names if leaving else frozenset()

    def displaced_by(self, attachments: Iterable[Attachment]) -> frozenset[str]:
        """Give the base weights that adapters would move when they are attached."""
        moving = [attachment for attachment in attachments if attachment.settings.moves_base]
        if not moving:
            return frozenset()
        roles, head = self.roles(), self.head
        targets = [target for each in moving for target in each.settings.targets(self.model, roles, each.names - head)]
        return frozenset(f"{canonical_name(target)}.weight" for target in targets)

    def pluses(self) -> dict[str, float]:
        """Give the weights that move faster than the rest of their adapter, and how many times (LoRA+)."""
        faster = {each.name: each.settings.plus for each in self.attachments if each.settings.plus is not None}
        members = self.roles().members if faster else {}
        return {
            weight: plus
            for name, plus in faster.items()
            for weight in members[f"adapter.{name}"]
            if ".lora_B." in weight
        }

    def snapshot(self, names: frozenset[str]) -> Snapshot:
        """Copy these weights, and note head, adapters and what may have moved."""
        weights = self.heads.copy(map(self.heads.stored_name, names))
        return Snapshot(self.heads.current, self.attachments, self.heads.stored(self.touched), weights)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back: the head, the adapters and the weights of then."""
        staying = len(snapshot.attachments)
        if self.attachments[:staying] != snapshot.attachments or snapshot.head != self.heads.current:
            staying = 0
        self.take_off([attachment.name for attachment in self.attachments[staying:]])
        self.heads.put(snapshot.weights)  # what is not of the head of then is found under the one of now
        self.turn_to(snapshot.head)
        for attachment in snapshot.attachments[staying:]:
            self.attach(attachment, "rollback", fresh=False)
        self.heads.put(snapshot.weights)
        self.heads.note(snapshot.touched)
        self.touched = self.heads.own_names(snapshot.touched)

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights of the current model in place."""
        put_weights(self.model, weights)

    def touched_weights(self) -> Weights:
        """Copy every weight, under any head, that may differ from the pretrained one; by stored names."""
        return self.heads.copy(self.heads.stored(self.touched))

    def put_touched(self, weights: Mapping[str, Tensor]) -> None:
        """Put back what `touched_weights` gave, which is all that may differ."""
        self.heads.put(weights)
        self.heads.note(weights)
        self.touched = self.heads.own_names(weights)

    def to(self, device: torch.device) -> None:
        """Move the model to a device."""
        self.model.to(device)

    def _chosen(self, names: Iterable[str] | None) -> list[Attached]:
        wanted = None if names is None else set(names)
        return [each for each in self.attached if wanted is None or each.attachment.name in wanted]

    def _forget(self, leaving: list[Attached]) -> None:
        """Note that adapters go."""
        if not leaving:
            return
        members = self.roles().members
        self.touched = self.touched.difference(*(members[f"adapter.{each.attachment.name}"] for each in leaving))
        self.attached = tuple(each for each in self.attached if each not in leaving)
