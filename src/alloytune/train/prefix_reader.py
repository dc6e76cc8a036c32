"""How a stage comes by what its frozen layers give: computed for every call, or computed once and read back.

Either way they are in evaluation mode and draw no random numbers. What is read back was computed in blocks that depend
on the rows alone (all training rows by length, so many at a time), so that it is the same however batches are made,
and after a resume. A block is computed when one of its rows is first needed.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from alloytune.machine import Machine
from alloytune.models.frozen_prefix import FrozenPrefix, Hidden, Inputs
from alloytune.tasks.task import Batch, Example
from alloytune.tasks.tokenized import count_tokens, passes, row_names
from alloytune.train.activations import Block, Shelf, cut_block, lay_out, look_up
from alloytune.train.calls import Call, read_call
from alloytune.train.loop import Loss
from alloytune.trying import agree, evaluating

ROWS_PER_BLOCK = 64  # as many as are scored at a time


@dataclass(frozen=True)
class Reading:
    """How examples become calls of a model, and what it gives them."""

    collate: Callable[[Sequence[Example]], Batch]
    outputs: Callable[[nn.Module, Batch], Tensor]
    machine: Machine

    def outputs_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call the model in the machine's precision."""
        with self.machine.autocast():
            return self.outputs(model, batch.to(self.machine.device))

    def exact(self) -> "Reading":
        """Give the same with products in float32."""
        return replace(self, machine=self.machine.exact())


class PrefixReader:
    """Stands between a model and its frozen layers. Without a `prefix`, the model runs as it is.

    With a `shelf`, what they give for the rows of `examples`, and for whatever is scored, is kept there.
    """

    def __init__(
        self,
        prefix: FrozenPrefix | None,
        reading: Reading,
        examples: Sequence[Example] = (),
        shelf: Shelf | None = None,
    ) -> None:
        self.prefix = prefix
        self.shelf = shelf
        self.num_read = 0  # texts
        self.num_computed = 0
        self.tokens_kept = 0  # tokens of the examples, as far as blocks have been computed
        self.seconds = 0.0  # that this took
        self._reading = reading
        self._examples = examples
        self._members = _blocks_of(examples, reading.machine.pass_tokens) if shelf else []
        self._numbers: dict[str, list[int]] = defaultdict(list)  # of the blocks of a row
        names = row_names(examples) if shelf else []
        for number, members in enumerate(self._members):
            for place in members.tolist():
                self._numbers[names[place]].append(number)
        self._blocks: dict[int, Block] = {}
        self._needed: list[Block] = []  # by the batch of now
        self._is_scoring = False
        self._last: tuple[bytes, Hidden] | None = None

    def over(self, examples: Sequence[Example]) -> "PrefixReader":
        """Give one for other examples, with the same shelf."""
        return PrefixReader(self.prefix, self._reading, examples, self.shelf)

    def running(self) -> AbstractContextManager[None]:
        """Stand between the model and its frozen layers."""
        return nullcontext() if self.prefix is None else self.prefix.serving(self._source)

    def loss(self, summed_loss: Loss) -> Loss:
        """Give a loss for batches of the examples, by which what a batch needs is there before the model is called."""
        if self.shelf is None:
            return summed_loss

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            numbers = sorted({number for row in batch.rows for number in self._numbers[row]})
            self._needed = [self._block(number) for number in numbers]
            return summed_loss(model, batch)

        return loss

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Keep what calls in evaluation mode need: a split is scored in the same batches every time."""
        self._is_scoring = self.shelf is not None
        try:
            yield
        finally:
            self._is_scoring = False

    def _source(self, inputs: Inputs) -> Hidden | None:
        """Give what the frozen layers give for a call; None to let them run, as where answers are written."""
        assert self.prefix is not None
        if not (self.prefix.model.training or self._is_scoring):
            return None
        call = read_call(inputs)
        if call is None:
            return self.prefix.compute(inputs)
        if not self.prefix.model.training:
            block = self._kept(call, inputs)
            return lay_out(call, [(block, number) for number in range(len(call.texts))], self._device)
        found = look_up(call, self._needed)
        if found is None:
            return self._computed(call, inputs)
        self.num_read += len(call.texts)
        return lay_out(call, found, self._device)

    def _computed(self, call: Call, inputs: Inputs) -> Hidden:
        """Run the layers for a call, once where it comes twice in a row."""
        assert self.prefix is not None
        key = call.key + _precision(self._device)
        if self._last is None or self._last[0] != key:
            self._last = key, self.prefix.compute(inputs)
        return self._last[1]

    def _block(self, number: int) -> Block:
        """Give a block of the examples."""
        if number not in self._blocks:
            began = time.perf_counter()
            members = [self._examples[place] for place in self._members[number].tolist()]
            self._blocks[number] = self._filled(members)
            self.tokens_kept += sum(example.num_tokens for example in members)
            self.seconds += time.perf_counter() - began
        return self._blocks[number]

    def _filled(self, members: Sequence[Example]) -> Block:
        assert self.prefix is not None
        reading, model = self._reading, self.prefix.model
        batch = reading.collate(members)
        inputs = self.prefix.inputs_of(lambda: reading.outputs_of(model, batch))
        call = None if inputs is None else read_call(inputs)
        if inputs is None or call is None:  # of such examples no call can be read, so that none is looked up
            return Block((), (), (), ())
        with reading.machine.autocast():
            return self._kept(call, inputs)

    def _kept(self, call: Call, inputs: Inputs) -> Block:
        """Give the block of a call, computed now if it is not there; always as it is kept."""
        assert self.prefix is not None
        assert self.shelf is not None
        key = call.key + _precision(self._device)
        block = self.shelf.get(key)
        if block is not None:
            self.num_read += len(call.texts)
            return block
        self.num_computed += len(call.texts)
        return self.shelf.put(key, cut_block(call, self.prefix.compute(inputs), self._reading.machine.precision))

    @property
    def _device(self) -> torch.device:
        return self._reading.machine.device


def agrees(prefix: FrozenPrefix, reading: Reading, examples: Sequence[Example]) -> bool:
    """Tell whether a model gives the same when kept hidden states stand in for its layers, padded in another way.

    The first example, which should be the shortest, is tried by itself, so with less padding. In float32.
    """
    reading, model = reading.exact(), prefix.model
    whole, part = reading.collate(examples), reading.collate(examples[:1])
    blocks: list[Block] = []
    served: list[Hidden] = []

    def source(inputs: Inputs) -> Hidden | None:
        call = read_call(inputs)
        found = None if call is None else look_up(call, blocks)
        if call is None or found is None:
            return None
        served.append(lay_out(call, found, reading.machine.device))
        return served[-1]

    try:
        with torch.no_grad(), evaluating(model):
            expected = reading.outputs_of(model, part)
            with prefix.serving(source):
                inputs = prefix.inputs_of(lambda: reading.outputs_of(model, whole))
                call = None if inputs is None else read_call(inputs)
                if inputs is None or call is None:
                    return False
                hidden = prefix.compute(inputs)
                if not _fits(call, hidden):
                    return False
                blocks.append(cut_block(call, hidden, torch.float32))
                found = reading.outputs_of(model, part)
    except (IndexError, RuntimeError, TypeError, ValueError):  # of a model that is built otherwise
        return False
    return bool(served) and agree(found, expected)


def _fits(call: Call, hidden: Hidden) -> bool:
    """Tell whether hidden states are laid out as the texts are."""
    return all(
        states.shape[:2] == (call.num_rows, call.num_places[min(chain, 1)]) for chain, states in enumerate(hidden)
    )


def _blocks_of(examples: Sequence[Example], most_tokens: int) -> list[np.ndarray]:
    """Cut the numbers of examples into blocks, the longest first."""
    lengths = count_tokens(examples)
    order = np.argsort(-lengths, kind="stable")
    return list(passes(order, lengths, ROWS_PER_BLOCK, most_tokens))


def _precision(device: torch.device) -> bytes:
    """Name the precision of products as it is now."""
    is_lowered = torch.is_autocast_enabled(device.type)
    return repr(torch.get_autocast_dtype(device.type) if is_lowered else None).encode()
