"""Few rows that stand for many, where a cost is tried: what they cost is in proportion to their tokens."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from alloytune.tasks.task import Example
from alloytune.tasks.tokenized import count_tokens
from alloytune.train.batches import Updates


def spread(examples: Sequence[Example], num_tokens: float, least: int = 1) -> list[Example]:
    """Give examples of all lengths, the longest first, with about so many tokens in all but no fewer than `least`."""
    lengths = count_tokens(examples)
    num_rows = round(len(examples) * num_tokens / max(int(lengths.sum()), 1))
    num_rows = min(max(num_rows, least), len(examples))
    order = np.argsort(-lengths, kind="stable")
    places = np.linspace(0, len(examples) - 1, num_rows).round().astype(int)
    return [examples[number] for number in order[places].tolist()]


def alike(examples: Sequence[Example], num_tokens: float, least: int = 1) -> list[Example]:
    """Give neighbours by length around the median, with about so many tokens in all: as in batches, few are padded."""
    order = np.argsort(count_tokens(examples), kind="stable")
    middle = len(order) // 2
    num_rows = round(num_tokens / max(examples[order[middle]].num_tokens, 1))
    num_rows = min(max(num_rows, least), len(order))
    start = min(max(middle - num_rows // 2, 0), len(order) - num_rows)
    return [examples[number] for number in order[start : start + num_rows].tolist()]


def few_updates(updates: Updates, count: int, most_tokens: int) -> Updates:
    """Give a series with `count` updates in a pass, of about `most_tokens` each, or of whole batches if they are less.

    What is learned beside is cut down alike.
    """
    per_update = min(most_tokens, tokens_per_row(updates.examples) * updates.batch)
    examples = spread(updates.examples, per_update * count, least=2 * count)  # some losses need two rows
    batch = min(updates.batch, max(1, len(examples) // count))
    return replace(
        updates,
        examples=examples,
        batch=batch,
        micro_batch=min(updates.micro_batch, batch),
        beside={name: few_updates(series, count, most_tokens) for name, series in updates.beside.items()},
    )


def tokens_per_update(updates: Updates) -> float:
    """Give the tokens of an update on average, with those of what is learned beside."""
    of_one = int(count_tokens(updates.examples).sum()) / updates.per_epoch
    return of_one + sum(map(tokens_per_update, updates.beside.values()))


def heaviest_rows(updates: Updates) -> list[Example]:
    """Give the rows of that pass through the model, in the first epoch, which has the most tokens, padding counted."""
    found = [few for chosen in updates.epoch(0) for few in updates.micro_batches(chosen)]
    heaviest = max(found, key=lambda chosen: len(chosen) * int(updates.lengths[chosen].max()))
    return [updates.examples[number] for number in heaviest.tolist()]


def tokens_per_row(examples: Sequence[Example]) -> float:
    """Give the mean length."""
    return int(count_tokens(examples).sum()) / len(examples)
