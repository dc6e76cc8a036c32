"""Summarization of a source text: by an encoder with a decoder, or by a decoder that is asked to."""

from typing import ClassVar

from alloytune.tasks.writing import Writing


class Summarization(Writing):
    """A source and its summary."""

    pipeline: ClassVar[str] = "summarization"
    metrics: ClassVar[tuple[str, ...]] = ("rouge_1", "rouge_2", "rouge_l", "chrf")
    asks: ClassVar[str] = "Summarise:\n\n{source}"


TASK = Summarization
