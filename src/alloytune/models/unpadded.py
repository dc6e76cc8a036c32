"""Layers that compute no padding: between the first and the last one, the tokens of a batch stand in one row.

Everything in a layer but attention looks at one token at a time. Attention gets its queries, keys and values padded
again, and the mask that the model made, so that no text sees another. Whether a model bears that is tried on it, once:
BERT, RoBERTa and Llama do; those that compute attention by themselves, or have two sides, are left as they are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from alloytune.models.frozen_prefix import reads_nothing
from alloytune.models.in_force import in_calls
from alloytune.models.replay import layer_modules
from alloytune.models.roles import Roles
from alloytune.trying import agree, evaluating

MULTIPLE = 64  # of tokens, filled up with zeros
FEW = 4  # the same where a model is tried on eleven tokens


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a padded batch stand, and how many `filled` places they take when stripped.

    `places`: [tokens], each among the `rows` * `length` places; `tokens`: the way back, [rows * length], at padding the
    number after the last token, where there is always one of what is filled up.
    For every number of tokens oneDNN builds kernels and keeps them, 0.2 MB each: with as many numbers as batches,
    training two of MiniLM's layers took 250 MB more and a fifth more time.
    """

    rows: int
    length: int
    places: Tensor
    tokens: Tensor
    filled: int
    _by_heads: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, attention_mask: Tensor, multiple: int = MULTIPLE) -> "Layout":
        """Read the layout off a mask, [rows, length]."""
        is_token = attention_mask.flatten().bool()
        places = is_token.nonzero()[:, 0]
        tokens = (is_token.cumsum(0) - 1).masked_fill_(~is_token, len(places))
        rows, length = attention_mask.shape
        return cls(rows, length, places, tokens, (len(places) // multiple + 1) * multiple)

    @property
    def saves(self) -> bool:
        """Tell whether fewer places are computed than with padding.

        Nor must they be as many as a row has: what is stripped would look like a row that stands for all.
        """
        return self.filled < len(self.tokens) and self.filled != self.length

    def strip(self, padded: Tensor) -> Tensor:
        """Take the padding out: [rows, length, width] to [1, filled, width]; a single row stands for all."""
        padded = padded.expand(self.rows, self.length, padded.shape[-1])
        stripped: Tensor = _Strip.apply(padded[:, None], self)  # type: ignore[no-untyped-call]
        return stripped.transpose(0, 1)

    def pad(self, stripped: Tensor) -> Tensor:
        """Put the padding back, which nobody reads: [1, filled, width] to [rows, length, width]."""
        padded: Tensor = _Pad.apply(stripped.transpose(0, 1), self)  # type: ignore[no-untyped-call]
        return padded[:, 0]

    def strip_heads(self, padded: Tensor) -> Tensor:
        """Do the same for attention: [rows, heads, length, width] to [1, heads, filled, width]."""
        stripped: Tensor = _Strip.apply(padded, self)  # type: ignore[no-untyped-call]
        return stripped.transpose(0, 1)[None]

    def pad_heads(self, stripped: Tensor) -> Tensor:
        """Do the same for attention: [1, heads, filled, width] to [rows, heads, length, width]."""
        padded: Tensor = _Pad.apply(stripped[0].transpose(0, 1), self)  # type: ignore[no-untyped-call]
        return padded

    def _taken_out(self, padded: Tensor) -> Tensor:
        """Give [filled, heads, width] of [rows, heads, length, width]."""
        heads, width = padded.shape[1], padded.shape[3]
        places, _ = self._for_heads(heads)
        stripped = padded.new_empty(self.filled, heads, width)
        every = stripped.view(-1, width)
        torch.index_select(padded.reshape(-1, width), 0, places, out=every[: len(places)])
        every[len(places) :] = 0
        return stripped

    def _put_back(self, stripped: Tensor) -> Tensor:
        """Give [rows, heads, length, width] of [filled, heads, width]."""
        _, heads, width = stripped.shape
        _, tokens = self._for_heads(heads)
        return stripped.reshape(-1, width).index_select(0, tokens).view(self.rows, heads, self.length, width)

    def _for_heads(self, heads: int) -> tuple[Tensor, Tensor]:
        """Give `places` and `tokens` where each token has a part for every head: in a row's padded form one head's
        tokens follow one another, so that its product with another's is of neighbours; stripped, one token's heads do.
        """
        if heads not in self._by_heads:
            head = torch.arange(heads, device=self.places.device)
            first = self.places // self.length * (heads * self.length) + self.places % self.length
            places = first[:, None] + head * self.length
            tokens = self.tokens.view(self.rows, 1, self.length) * heads + head[:, None]
            self._by_heads[heads] = places.flatten(), tokens.flatten()
        return self._by_heads[heads]


class _Strip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return layout._taken_out(padded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # zeros where padding stands, which take no part: index_copy into zeros takes three times as long
        gradient = gradients[0].clone()
        gradient[len(ctx.layout.places) :] = 0
        return ctx.layout._put_back(gradient), None


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stripped: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return layout._put_back(stripped)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.layout._taken_out(gradients[0]), None


@contextmanager
def unpadded(model: nn.Module, roles: Roles) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """Compute no padding in a model's layers while it trains; one that does not bear it is left as it is.

    What is given makes, within a call of the model, a context in which its layers can be called again afterwards.
    """
    layers = [] if getattr(model.config, "is_encoder_decoder", False) else layer_modules(model, roles)
    if not layers or not _bears(model, layers, on_left=False):
        yield nullcontext
        return
    with _hooked(model, layers, on_left=_bears(model, layers, on_left=True)) as padded_attention:
        yield padded_attention.again


@contextmanager
def _hooked(
    model: nn.Module, layers: Sequence[nn.Module], *, on_left: bool, tries: bool = False
) -> Iterator["_PaddedAttention"]:
    """Strip padding; that on the left, behind which a head may look for the first token, only where `on_left`."""
    padded_attention = _PaddedAttention(FEW if tries else MULTIPLE)

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask: Any = kwargs.get("attention_mask")
        counts = isinstance(mask, Tensor) and mask.dim() == 2 and (model.training or tries)
        padded_attention.begin(mask if counts and (on_left or bool(mask[:, 0].all())) else None)

    def strip(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layout = padded_attention.layout
        if layout is None or reads_nothing(layer):
            return None
        return _stripped(args, layout), _stripped(kwargs, layout)

    def pad(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        layout = padded_attention.layout
        hidden = output if isinstance(output, Tensor) else output[0]
        if layout is None or hidden.shape[:2] != (1, layout.filled):  # a layer that something padded stands in for
            return None
        padded_attention.has_padded = True
        padded = layout.pad(hidden)
        return padded if isinstance(output, Tensor) else (padded, *output[1:])

    handles = [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        model.register_forward_hook(padded_attention.end, always_call=True),
        *(layer.register_forward_pre_hook(strip, with_kwargs=True) for layer in layers),
        layers[-1].register_forward_hook(pad),
    ]
    try:
        with in_calls(model, padded_attention):
            yield padded_attention
    finally:
        for handle in handles:
            handle.remove()


def _stripped(value: Any, layout: Layout) -> Any:
    """Take the padding out of all that has a row for each token: hidden states, positions turned into angles."""
    match value:
        case Tensor() if value.dim() == 3 and value.shape[:2] in ((layout.rows, layout.length), (1, layout.length)):
            return layout.strip(value)
        case tuple():
            return tuple(_stripped(each, layout) for each in value)
        case dict():
            return {key: _stripped(each, layout) for key, each in value.items()}
    return value


class _PaddedAttention(TorchFunctionMode):
    """Has attention computed on padded rows where it is given all tokens in one, [1, heads, filled, width]."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self._multiple = multiple
        self.has_padded = False  # what stripped layers gave
        self._layouts: list[Layout | None] = []  # of a call of the model, and of calls within it

    @property
    def layout(self) -> Layout | None:
        """Give where tokens stand in the call of now; None where nothing is done about its padding."""
        return self._layouts[-1] if self._layouts else None

    def begin(self, mask: Tensor | None) -> None:
        """Begin a call of the model."""
        layout = None if mask is None else Layout.of(mask, self._multiple)
        self._layouts.append(layout if layout and layout.saves else None)

    def end(self, *_: Any) -> None:
        """End it."""
        self._layouts.pop()

    def again(self) -> AbstractContextManager[None]:
        """Give a context that is as the call of now is, to be entered after it."""
        return self._as_with(self.layout)

    @contextmanager
    def _as_with(self, layout: Layout | None) -> Iterator[None]:
        self._layouts.append(layout)
        try:
            with self:
                yield
        finally:
            self._layouts.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not functional.scaled_dot_product_attention or self.layout is None:
            return func(*args, **(kwargs or {}))
        layout = self.layout
        padded = [layout.pad_heads(each) for each in args[:3]]
        return layout.strip_heads(func(*padded, *args[3:], **(kwargs or {})))


@torch.no_grad()
def _bears(model: Any, layers: Sequence[nn.Module], *, on_left: bool) -> bool:
    """Try a model on two texts, of which one is padded, with and without."""
    padding = slice(0, 3) if on_left else slice(4, 7)
    try:
        vocabulary = int(model.get_input_embeddings().num_embeddings)
        ids = torch.arange(1, 15, device=model.device).view(2, 7) * 7 % vocabulary
        mask = torch.ones_like(ids)
        ids[1, padding] = getattr(model.config, "pad_token_id", None) or 0  # some heads read at the last that is not it
        mask[1, padding] = 0
        with evaluating(model), torch.autocast(ids.device.type, enabled=False):  # rounds too coarsely to tell
            expected = model(input_ids=ids, attention_mask=mask)[0]
            with _hooked(model, layers, on_left=on_left, tries=True) as tried:
                found = model(input_ids=ids, attention_mask=mask)[0]
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
        return False
    if not tried.has_padded:  # by itself the model pads further, as Longformer to its windows, and was not tried
        return False
    if expected.shape[:2] == ids.shape:  # of every token: what stands at padding is of no account
        expected, found = expected[mask.bool()], found[mask.bool()]
    return agree(found, expected)
