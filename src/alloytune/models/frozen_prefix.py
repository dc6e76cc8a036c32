"""The frozen layers below all that moves in a model: found, run by themselves, and stood in for by what they gave.

Nothing is listed by architecture. One pass shows which layers give something that no moving weight has touched
(autograd knows), what they hand on beside hidden states, and which modules run before the last of them has ended.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from alloytune.models.replay import layer_modules
from alloytune.models.roles import Roles
from alloytune.trying import evaluating, in_place_of

Inputs = dict[str, Any]  # what a plain call is made with
Hidden = tuple[Tensor, ...]  # of each chain, [rows, places, width]
Source = Callable[[Inputs], Hidden | None]

_PLAIN = {"use_cache": False, "return_dict": True}  # what a call may say beside tensors


@dataclass(frozen=True)
class Chain:
    """Frozen layers that run one after another, bottom first; a two-sided model may have two chains.

    `forms` tells of each layer what it gives beside hidden states, as places among its arguments; None for a layer that
    makes something itself, as the first of T5 does, and so always runs. `entry` is the module that gives the first
    layer its hidden states, where there is one; it need not run when the layers do not.
    """

    layers: tuple[nn.Module, ...]
    forms: tuple["Form | None", ...]
    entry: nn.Module | None
    entry_dtype: torch.dtype


Place = int | str | None  # of an argument, by position or by name; None for nothing


@dataclass(frozen=True)
class Form:
    """What a layer gives: hidden states alone, or a tuple of them and what it was given at `places`."""

    is_tuple: bool
    places: tuple[Place, ...] = ()

    def filled(self, hidden: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Give hidden states in this form."""
        if not self.is_tuple:
            return hidden
        return (
            hidden,
            *(None if at is None else args[at] if isinstance(at, int) else kwargs[at] for at in self.places),
        )


class FrozenPrefix:
    """The frozen layers of a model. `weights` holds all that can bear on what they give."""

    def __init__(self, model: nn.Module, chains: Sequence[Chain], weights: Sequence[Tensor]) -> None:
        self.model = model
        self.chains = tuple(chains)
        self._weights = weights
        self._hidden: Hidden | None = None  # what stands in for the layers in the call of now
        self._captured: dict[int, Tensor] | None = None  # in a call that is made for the sake of these alone
        self._is_looking = False  # at the inputs of a call alone

    @property
    def num_layers(self) -> int:
        """Give how many layers stand still."""
        return sum(len(chain.layers) for chain in self.chains)

    def without_entries(self) -> "FrozenPrefix":
        """Give the same prefix with what stands before its layers left to run, for models that use it elsewhere."""
        return FrozenPrefix(self.model, [replace(chain, entry=None) for chain in self.chains], self._weights)

    def fingerprint(self, *more: str, known: Mapping[Tensor, str] | None = None) -> bytes:
        """Hash what the hidden states depend on beside a call's inputs: weights, buffers, config, and `more`.

        Weights that are `known` count by what they are called there, unread: a table of embeddings that stands in its
        file would be brought into memory whole.
        """
        names = known or {}
        config: Any = getattr(self.model, "config", None)
        layers = [[type(layer).__name__ for layer in chain.layers] for chain in self.chains]
        attention = getattr(config, "_attn_implementation", None)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((more, layers, attention, config and config.to_json_string())).encode())
        for weight in self._weights:
            digest.update(repr((weight.dtype, tuple(weight.shape))).encode())
            if weight in names:
                digest.update(names[weight].encode())
            else:
                digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.digest()

    @contextmanager
    def serving(self, source: Source) -> Iterator[None]:
        """Let `source` give the hidden states for every plain call of the model; where it gives none, the layers run.

        A plain call is made of tensors alone; one with a memory of keys and values, to write with, is none.
        """
        with ExitStack() as stack:
            for number, chain in enumerate(self.chains):
                for layer, form in zip(chain.layers, chain.forms, strict=True):
                    stack.enter_context(in_place_of(layer, _StandIn(self, number, layer, form)))
                if chain.entry is not None:
                    stack.enter_context(in_place_of(chain.entry, self._entered(number, chain)))

            def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if self._captured is None:
                    inputs = plain_inputs(args, kwargs)
                    if self._is_looking:
                        raise _SeenError(inputs)
                    self._hidden = None if inputs is None else source(inputs)

            def end(*_: Any) -> None:
                if self._captured is None:
                    self._hidden = None

            stack.callback(self.model.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(self.model.register_forward_hook(end, always_call=True).remove)
            yield

    def inputs_of(self, call: Callable[[], Any]) -> Inputs | None:
        """Give what the model is called with by `call`, if it is plain; nothing runs. Within `serving` alone."""
        self._is_looking = True
        try:
            call()
        except _SeenError as seen:
            return seen.inputs
        finally:
            self._is_looking = False
        return None

    @torch.no_grad()
    def compute(self, inputs: Inputs) -> Hidden:
        """Run the prefix in evaluation mode, and nothing above it. Within `serving` alone."""
        before = self._hidden
        self._hidden, self._captured = None, {}
        captured = self._captured
        try:
            with evaluating(self.model):
                self.model(**inputs)
        except _ReachedError:
            pass
        finally:
            self._hidden, self._captured = before, None
        return tuple(captured[number] for number in range(len(self.chains)))

    def _entered(self, number: int, chain: Chain) -> Callable[..., Any]:
        assert chain.entry is not None
        run = chain.entry.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return run(*args, **kwargs) if self._hidden is None else self._hidden[number].to(chain.entry_dtype)

        return forward

    def _capture(self, number: int, hidden: Tensor) -> None:
        if self._captured is not None:
            self._captured[number] = hidden
            if len(self._captured) == len(self.chains):
                raise _ReachedError


class _StandIn:
    """What a frozen layer does: gives what is known of the call of now, or runs, and tells what it gave."""

    def __init__(self, prefix: FrozenPrefix, number: int, layer: nn.Module, form: Form | None) -> None:
        self._prefix = prefix
        self._number = number
        self._run = layer.forward
        self._is_last = layer is prefix.chains[number].layers[-1]
        self._form = form

    @property
    def reads_nothing(self) -> bool:
        """Tell whether it gives what is known, whatever it is given."""
        return self._prefix._hidden is not None and self._form is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._prefix._hidden is None:
            output = self._run(*args, **kwargs)
            if self._is_last:
                self._prefix._capture(self._number, _hidden_of(output))
            return output
        hidden = self._prefix._hidden[self._number]
        if self._form is not None:
            return self._form.filled(hidden, args, kwargs)
        with torch.no_grad():
            return (hidden, *self._run(*args, **kwargs)[1:])


def reads_nothing(layer: nn.Module) -> bool:
    """Tell whether something stands in for a layer in the call of now, so that what it is given is of no account."""
    stand_in = vars(layer).get("forward")
    return isinstance(stand_in, _StandIn) and stand_in.reads_nothing


class _ReachedError(Exception):
    """The prefix of a model has run; what is above it is not wanted."""


class _SeenError(Exception):
    """The model is called; that is all that was asked."""

    def __init__(self, inputs: Inputs | None) -> None:
        super().__init__()
        self.inputs = inputs


def plain_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs | None:
    """Give what a model is called with, if that is tensors by name, and nothing that asks for more than usual."""
    others = {key: value for key, value in kwargs.items() if not isinstance(value, Tensor)}
    if args or "input_ids" not in kwargs or any(value != _PLAIN.get(key, _PLAIN) for key, value in others.items()):
        return None
    return {**kwargs}


def find_frozen_prefix(
    model: nn.Module, roles: Roles, examine: Callable[[], Any], *, adapters: bool = True
) -> FrozenPrefix | None:
    """Find the layers before the first that a moving weight bears on; None where there are none.

    All that may ever move must require gradients, and nothing else. `examine` calls the model, in evaluation mode, on
    a few examples; its last call counts. Without `adapters`, the prefix ends before the first layer that holds one.
    """
    sides = ("encoder.layers", "decoder.layers") if "encoder.layers" in roles.stacks else ("layers",)
    stacks = [layer_modules(model, roles, side) for side in sides]
    seen = _observe(model, [layer for stack in stacks for layer in stack], examine)
    chains = [chain for stack in stacks if (chain := _chain(stack, seen, adapters=adapters))]
    return FrozenPrefix(model, chains, _bearing(model, chains, seen)) if chains else None


@dataclass(frozen=True)
class _Run:
    """One run of a layer: what it was given, and what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def given(self) -> Any:
        return self.args[0] if self.args else self.kwargs.get("hidden_states")

    @property
    def form(self) -> Form | None:
        if isinstance(self.output, Tensor):
            return Form(is_tuple=False)
        arguments: list[tuple[Place, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        places: list[Place] = []
        for value in self.output[1:]:
            found = [at for at, given in arguments if given is value]
            if value is not None and not found:
                return None
            places.append(None if value is None else found[0])
        return Form(is_tuple=True, places=tuple(places))


class _Seen:
    """What happened in a call of a model: how often modules ran, in which order, and what layers made of what."""

    def __init__(self) -> None:
        self.counts: Counter[nn.Module] = Counter()
        self.began: dict[nn.Module, int] = {}
        self.ended: dict[nn.Module, int] = {}
        self.gave: dict[nn.Module, Any] = {}
        self.runs: dict[nn.Module, _Run] = {}


def _observe(model: nn.Module, layers: Sequence[nn.Module], examine: Callable[[], Any]) -> _Seen:
    """Watch the last call of the model that `examine` makes."""
    seen, of_interest = _Seen(), set(layers)

    def begin(module: nn.Module, _: Any) -> None:
        if module is model:
            vars(seen).update(vars(_Seen()))
        seen.counts[module] += 1
        seen.began.setdefault(module, len(seen.began) + len(seen.ended))

    def end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.ended[module] = len(seen.began) + len(seen.ended)
        seen.gave[module] = output
        if module in of_interest:
            seen.runs[module] = _Run(args, kwargs, output)

    with ExitStack() as stack:
        for module in dict.fromkeys(_but_adapted(model)):
            stack.callback(module.register_forward_pre_hook(begin).remove)
            stack.callback(module.register_forward_hook(end, with_kwargs=True).remove)
        examine()
    return seen


def _but_adapted(module: nn.Module) -> Iterator[nn.Module]:
    """Give all modules but those within an adapted layer, of which some read the weights and warn of hooks."""
    yield module
    for inner in () if isinstance(module, BaseTunerLayer) else module.children():
        yield from _but_adapted(inner)


def _chain(stack: Sequence[nn.Module], seen: _Seen, *, adapters: bool) -> Chain | None:
    """Give the lowest layers of a stack that nothing moving bears on, if each ran once and made hidden states."""

    def is_frozen(layer: nn.Module) -> bool:
        run = seen.runs.get(layer)
        if (
            run is None
            or seen.counts[layer] != 1
            or not _is_hidden(run.given)
            or not _is_hidden(_hidden_of(run.output))
        ):
            return False
        adapted = not adapters and any(isinstance(module, BaseTunerLayer) for module in layer.modules())
        return not adapted and not _requires_grad(run.output)

    layers = tuple(takewhile(is_frozen, stack))
    if not layers:
        return None
    runs = [seen.runs[layer] for layer in layers]
    first = runs[0].given
    inside = {module for layer in layers for module in layer.modules()}
    gave_it = [m for m, gave in seen.gave.items() if gave is first and seen.counts[m] == 1 and m not in inside]
    # the last that ended holds the others: all of BERT's embeddings, not only the norm at their end
    return Chain(layers, tuple(run.form for run in runs), gave_it[-1] if gave_it else None, first.dtype)


def _bearing(model: nn.Module, chains: Sequence[Chain], seen: _Seen) -> list[Tensor]:
    """Give the weights and buffers of all but the modules that began after the last layer of the prefix had ended.

    What never ran as a module counts: its weights may be read by others.
    """
    ended = max(seen.ended[chain.layers[-1]] for chain in chains)
    early = {module for module, began in seen.began.items() if began < ended}
    late = {inner for module in seen.began.keys() - early for inner in module.modules()} - early
    found: dict[Tensor, None] = {}
    for module in model.modules():
        if module not in late:
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            found |= dict.fromkeys(tensor for tensor in own if not tensor.requires_grad)
    return list(found)


def _hidden_of(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _is_hidden(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


def _requires_grad(output: Any) -> bool:
    values = output if isinstance(output, tuple) else (output,)
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)
