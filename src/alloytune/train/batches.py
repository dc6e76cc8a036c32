"""Which examples make up which update: shuffled, with neighbours in length together, fixed by seed and epoch."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from alloytune.tasks.task import Batch, Example
from alloytune.tasks.tokenized import count_tokens, passes

POOL = 2  # batches whose examples are sorted by length together; more pads less and learns less, docs/decisions.md


@dataclass(frozen=True)
class Updates:
    """The endless series of updates over some examples.

    `vary` draws the form that an example has in an epoch, from its number and the epoch's, however it is batched.
    `beside` are the series of what else is learned in the same updates, by its name, which their batches bear.
    A micro-batch has at most `micro_batch` examples, and `pass_tokens` tokens with padding: attention over padded texts
    costs memory and time with the square of the longest.
    The micro-batches of update n depend on nothing but n, the seed and the sizes, so a resumed run sees the same.
    """

    examples: Sequence[Example]
    batch: int
    micro_batch: int
    seed: int
    collate: Callable[[Sequence[Example]], Batch]
    vary: Callable[[Example, np.random.Generator], Example] | None = None
    beside: Mapping[str, "Updates"] = field(default_factory=dict)
    pass_tokens: int = sys.maxsize

    @cached_property
    def lengths(self) -> np.ndarray:
        """Give the length of every example in tokens."""
        return count_tokens(self.examples)

    @property
    def per_epoch(self) -> int:
        """Give the updates in one pass over the examples."""
        return -(-len(self.examples) // self.batch)

    def after(self, done: int) -> Iterator[list[Batch]]:
        """Give the micro-batches of update `done` + 1, `done` + 2 and so on."""
        others = [_named(name, series.after(done)) for name, series in self.beside.items()]
        for of_one in zip(self._alone(done), *others, strict=True):
            yield [batch for micro_batches in of_one for batch in micro_batches]

    def _alone(self, done: int) -> Iterator[list[Batch]]:
        epoch, start = divmod(done, self.per_epoch)
        while True:
            for chosen in self.epoch(epoch)[start:]:
                yield [self.collate([self._example(n, epoch) for n in few]) for few in self.micro_batches(chosen)]
            epoch, start = epoch + 1, 0

    def micro_batches(self, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Cut the example numbers of an update."""
        return passes(chosen, self.lengths, self.micro_batch, self.pass_tokens)

    def _example(self, number: int, epoch: int) -> Example:
        example = self.examples[number]
        return self.vary(example, np.random.default_rng([self.seed, epoch, number])) if self.vary else example

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Give the example numbers of every update of an epoch; each example stands in exactly one."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.examples))
        size = self.batch * POOL
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        by_length = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        chosen = [by_length[start : start + self.batch] for start in range(0, len(by_length), self.batch)]
        return [chosen[n] for n in random.permutation(len(chosen))]


def _named(name: str, updates: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    for micro_batches in updates:
        yield [replace(batch, learning=name) for batch in micro_batches]
