"""Generation: answers to instructions, turns of a dialogue, completions of prompts, or plain text."""

from typing import ClassVar

from alloytune.tasks.writing import Writing


class Generation(Writing):
    """The next token of an answer, or of plain text."""

    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "chrf", "rouge_l")


TASK = Generation
