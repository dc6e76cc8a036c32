"""The part of a recipe that changes the model before its first stage."""

from typing import Annotated, Literal

from pydantic import Field

from alloytune.recipe.types.values import Part, Share


class Architecture(Part):
    """What is changed in the model before its first stage, and saved with it."""

    layers: int | None = Field(
        None, ge=1, description="Keep so many of the model's layers, the lowest; of encoder and decoder each."
    )
    dropout: Share | None = Field(
        None,
        description=(
            "Dropout throughout the model, written into its config; `dropout` in a stage is for that stage alone."
        ),
    )
    pooling: Literal["native", "cls", "mean"] = Field(
        "native",
        description=(
            "What the head of labels or of a number reads: as the model's class has it, the first token, or the mean. "
            "Models whose class has a choice: ModernBERT, EuroBERT."
        ),
    )
    tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="New tokens; their embeddings start at the mean of the others."
    )
