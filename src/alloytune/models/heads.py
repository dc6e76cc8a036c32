"""The heads of a run whose stages learn different things: one model each, over the same body."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from transformers import PreTrainedModel

from alloytune.models.bodies import Replaced, device_of, merge_bodies, put_back, share, shared_names
from alloytune.models.weights import Weights, copy_weights, named_weights, put_weights

MAIN = ""  # the head of what the recipe itself learns
BESIDE = "beside"  # where the models of other heads stand in the current one


@dataclass(frozen=True)
class Head:
    """A model with a task's head.

    `fresh` names the weights that no file held. `body` gives the main model's name for each weight that is shared with
    it. `moved` are those of its own weights that may differ from when it was loaded.
    """

    model: PreTrainedModel
    fresh: frozenset[str]
    body: Mapping[str, str] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()


class Heads:
    """All heads by name, one of them the current, which alone has the adapters.

    Others may stand `beside` it: their models are then parts of the current one and have its very body, adapters and
    all, so that one stage trains several.
    What a checkpoint or a snapshot holds goes by stored names: those of the main model for the body and its own head,
    NAME:WEIGHT for another head.
    """

    def __init__(self, model: PreTrainedModel, fresh: frozenset[str]) -> None:
        self._heads = {MAIN: Head(model, fresh)}
        self.current = MAIN
        self.beside: tuple[str, ...] = ()
        self._replaced: Replaced = []

    @property
    def head(self) -> Head:
        """Give the current head."""
        return self._heads[self.current]

    def add(self, name: str, model: PreTrainedModel, fresh: frozenset[str]) -> None:
        """Add a model with another head; its body is the main model's from now on."""
        main = self._heads[MAIN].model
        body = shared_names(model, main)
        model.to(device_of(main))
        share(model, main, body)
        self._heads[name] = Head(model, fresh, body)

    def turn_to(self, name: str, touched: frozenset[str]) -> frozenset[str]:
        """Make a head the current one, over the body of the one before; give what may have moved of its weights.

        `touched` is what may have moved of the one before, which must be without adapters.
        """
        stored, main, new = self.stored(touched), self._heads[MAIN], self._heads[name]
        share(main.model, self.head.model, {theirs: ours for ours, theirs in self.head.body.items()})
        share(new.model, main.model, new.body)
        self.current = name
        self.note(stored)
        return self.own_names(stored)

    def stand_beside(self, names: Sequence[str]) -> None:
        """Let exactly these other heads stand beside the current one."""
        put_back(self._replaced)
        self._replaced, self.beside = [], ()
        if hasattr(self.head.model, BESIDE):
            delattr(self.head.model, BESIDE)
        if not names:
            return
        own = self._by_stored_name()
        for name in names:
            model = self._heads[name].model
            stored = {weight: self._stored_under(name, weight) for weight in named_weights(model)}
            body = {weight: own[its] for weight, its in stored.items() if its in own}
            self._replaced += merge_bodies(model, self.head.model, body)
        self.beside = tuple(names)
        self.head.model.add_module(BESIDE, nn.ModuleDict({_slot(name): self._heads[name].model for name in names}))

    def model_of(self, name: str) -> PreTrainedModel:
        """Give the model with a head."""
        return self._heads[name].model

    def own_weights(self, name: str) -> frozenset[str]:
        """Give the current model's names for what a head that stands beside it has for itself."""
        start = f"{BESIDE}.{_slot(name)}."
        return frozenset(weight for weight in named_weights(self.head.model) if weight.startswith(start))

    def weights_of(self, name: str) -> frozenset[str]:
        """Give the current model's names for all weights with which a head that stands beside it is run."""
        its = frozenset(self._heads[name].model.parameters())
        return frozenset(weight for weight, value in named_weights(self.head.model).items() if value in its)

    def note(self, stored: Iterable[str]) -> None:
        """Remember, by stored names, what may have moved of every head's own weights."""
        names = frozenset(stored)
        for key, head in self._heads.items():
            own = (name for name in named_weights(head.model) if name not in head.body)
            self._heads[key] = replace(head, moved=frozenset(name for name in own if _written(key, name) in names))

    def stored(self, touched: frozenset[str]) -> frozenset[str]:
        """Give the stored names of what may have moved: of the current model these, of the others what is known."""
        others = {_written(key, n) for key, head in self._heads.items() if key != self.current for n in head.moved}
        return frozenset(map(self.stored_name, touched)) | others

    def stored_name(self, name: str) -> str:
        """Give the stored name of a weight of the current model."""
        for key in self.beside:
            start = f"{BESIDE}.{_slot(key)}."
            if name.startswith(start):
                return self._stored_under(key, name.removeprefix(start))
        return self._stored_under(self.current, name)

    def _stored_under(self, key: str, name: str) -> str:
        """Give the stored name of a weight of a head's model."""
        return self._heads[key].body.get(name) or _written(key, name)

    def own_names(self, stored: Iterable[str]) -> frozenset[str]:
        """Give the current model's names for those of the stored ones that it has."""
        own = self._by_stored_name()
        return frozenset(own[name] for name in stored if name in own)

    def as_current(self, weights: Mapping[str, Tensor]) -> Weights:
        """Give those of the weights, by stored names, that the current model has, by its own names."""
        own = self._by_stored_name()
        return {own[name]: value for name, value in weights.items() if name in own}

    def copy(self, stored: Iterable[str]) -> Weights:
        """Copy weights to main memory, by stored names."""
        names = frozenset(stored)
        here = self.own_names(names)
        found = {self.stored_name(name): value for name, value in copy_weights(self.head.model, here).items()}
        for key, model, own in self._others():
            theirs = [name for name in own if _written(key, name) in names]
            found |= {_written(key, name): value for name, value in copy_weights(model, theirs).items()}
        return dict(sorted(found.items()))

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Put copies back in place, by stored names."""
        put_weights(self.head.model, self.as_current(weights))
        for key, model, own in self._others():
            theirs = {name: _written(key, name) for name in own}
            put_weights(model, {name: weights[its] for name, its in theirs.items() if its in weights})

    def _by_stored_name(self) -> dict[str, str]:
        return {self.stored_name(name): name for name in named_weights(self.head.model)}

    def _others(self) -> Iterator[tuple[str, PreTrainedModel, list[str]]]:
        """Give of each other head its name, its model, and what of its weights the current one does not have."""
        here = frozenset(self.head.body.values())
        for key, head in self._heads.items():
            if key not in (self.current, *self.beside):
                is_here = here.__contains__ if key == MAIN else head.body.__contains__
                yield key, head.model, [name for name in named_weights(head.model) if not is_here(name)]


def _written(key: str, name: str) -> str:
    return name if key == MAIN else f"{key}:{name}"


def _slot(key: str) -> str:
    """Give a head's place among those that stand beside another; such a name has no dot."""
    return key.replace(".", ":") or ":"
