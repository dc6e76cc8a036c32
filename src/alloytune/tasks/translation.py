"""Translation of a source text: by an encoder with a decoder, or by a decoder that is asked to."""

from typing import ClassVar

from alloytune.tasks.writing import Writing


class Translation(Writing):
    """A source and its translation."""

    pipeline: ClassVar[str] = "translation"
    metrics: ClassVar[tuple[str, ...]] = ("chrf", "bleu", "exact_match")
    asks: ClassVar[str] = "Translate:\n\n{source}"


TASK = Translation
