"""The part of a recipe that says what is learned, where a task has settings."""

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
)

from alloytune.recipe.types.values import Before, Part, Share, Verbatim

TaskName = Literal[
    "classification",
    "multilabel",
    "regression",
    "tagging",
    "generation",
    "translation",
    "summarization",
    "embedding",
    "preference",
    "language_modelling",
]


class Classification(Part):
    """One label for a text or a pair of texts; the loss is cross-entropy."""

    class_weights: (
        Literal["balanced"]
        | Annotated[
            dict[str, Annotated[float, Field(gt=0)]],
            WithJsonSchema(
                {
                    "type": "object",
                    "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
                    "format": "label weights",
                }
            ),
        ]
        | None
    ) = Field(
        None,
        description=(
            "What the loss of a row is multiplied with, by its label; 1 where a label is not named. balanced: rows / "
            "(labels * rows of the label), so that every label weighs as much in training."
        ),
    )


class Multilabel(Part):
    """Any number of labels for a text or a pair of texts; the loss is binary cross-entropy."""

    separator: Verbatim | None = Field(
        None, description="What stands between the labels of a cell, such as `;`; cells are JSON lists where absent."
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["tuned", "tuned-per-label"] = Field(
        "tuned",
        description=(
            "Probability from which on a label is predicted. tuned: the one with the best micro-F1 on validation. "
            "tuned-per-label: for each label the one with its best F1. It is saved with the model's config."
        ),
    )


class Regression(Part):
    """A number for a text or a pair of texts; it is standardised for training, and given back in its own units."""

    loss: Literal["mse", "huber"] = Field(
        "mse", description="Squared error; or Huber's, in which errors beyond a standard deviation count linearly."
    )


class Tagging(Part):
    """Entities in a sentence; the loss is cross-entropy at the first token of every word."""


class _Writing(Part):
    packing: bool = Field(
        True,
        description=(
            "Let short examples share a row where that fills padding; none sees another. Models that cannot keep them "
            "apart, and encoders with decoders, take them one to a row anyhow."
        ),
    )
    generate: int = Field(
        64,
        ge=0,
        description=(
            "Rows, the first of a split, for which an answer is written and compared when the split is scored; the "
            "loss counts all rows. 0 writes none, and leaves the metrics of written answers away."
        ),
    )
    max_new_tokens: int = Field(128, ge=1, description="Tokens of a written answer at most.")


_PROMPT = Field(
    None,
    description=(
        "What is asked, with {source} where the source text goes. Where absent, encoders with decoders read the source "
        "alone, and decoders are asked in a few words of English."
    ),
)


class Generation(_Writing):
    """Answers are learned token by token; instructions and messages are written by the tokenizer's chat template."""


class Translation(_Writing):
    """A source text and its translation."""

    prompt: str | None = _PROMPT
    source_language: str | None = Field(
        None, description="Language of the sources, for models of many: a word of its tokenizer, such as `eng_Latn`."
    )
    target_language: str | None = Field(None, description="Language of the targets, likewise.")
    bleu_words: Literal["13a", "intl", "zh", "char"] = Field(
        "13a",
        description="How sacrebleu cuts texts into words for BLEU: 13a or intl at blanks and punctuation, zh, or char.",
    )


class Summarization(_Writing):
    """A source text and its summary."""

    prompt: str | None = _PROMPT


class Embedding(Part):
    """One vector per text, so that a query lies near its document; the loss is InfoNCE within the batch."""

    temperature: float = Field(0.05, gt=0, le=1, description="What cosines are divided by; smaller is stricter.")
    pooling: Literal["auto", "mean", "cls", "last", "max"] = Field(
        "auto",
        description="How a text's tokens become one vector; auto does as the model's folder says, else takes the mean.",
    )
    query_prompt: Before | None = Field(
        None, description="Text put before every query, such as `query: `; as the model's folder says where absent."
    )
    document_prompt: Before | None = Field(
        None, description="Text put before every document, such as `passage: `; likewise."
    )


class Preference(Part):
    """Of two answers to a prompt, the chosen one is to become likelier; the loss is DPO's."""

    beta: float = Field(
        0.1, gt=0, description="The larger, the nearer the model stays to the weights with which the stage began."
    )


class LanguageModelling(Part):
    """Tokens foretold in text without labels; the loss is cross-entropy."""

    objective: Literal["auto", "masked", "next"] = Field(
        "auto", description="Tokens to foretell: masked ones, the next one, or auto by the kind of model."
    )
    share: Share = Field(0.15, gt=0, description="Share of a text's tokens that are masked.")


class Task(Part):
    """What is learned, with its settings: exactly one task."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"classification": "{class_weights: balanced}"}]})

    classification: Classification | None = Field(None, description="One label for a text or a pair of texts.")
    multilabel: Multilabel | None = Field(None, description="Any number of labels for a text or a pair of texts.")
    regression: Regression | None = Field(None, description="A number for a text or a pair of texts.")
    tagging: Tagging | None = Field(None, description="Entities in a sentence; it has no settings.")
    generation: Generation | None = Field(None, description="Answers, turns of a dialogue, completions or plain text.")
    translation: Translation | None = Field(None, description="A translation of a text.")
    summarization: Summarization | None = Field(None, description="A summary of a text.")
    embedding: Embedding | None = Field(None, description="One vector per text.")
    preference: Preference | None = Field(None, description="Of two answers the better one.")
    language_modelling: LanguageModelling | None = Field(None, description="Text without labels.")

    @property
    def named(self) -> list[str]:
        """Give the tasks that are named; one, when the recipe is sound."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @model_serializer(mode="wrap")
    def _without_other_tasks(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in written(self).items() if value is not None}


def settings_of(task: str | Task) -> dict[str, Any]:
    """Give a task's settings, the defaults where it is only named."""
    if isinstance(task, Task):
        (name,) = task.named
        settings: dict[str, Any] = getattr(task, name).model_dump()
        return settings
    return Task.model_validate({task: {}}).model_dump()[task]  # type: ignore[no-any-return]
