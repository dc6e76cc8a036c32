"""The part of a recipe that says where the examples are."""

from pydantic import Field

from alloytune.recipe.types.values import Part, Share


class Split(Part):
    """How validation and test are cut from the training rows where no file gives them."""

    validation: Share = Field(0.1, description="Share of the rows for validation, such as 10%.")
    test: Share = Field(0.1, description="Share of the rows for the test at the end.")
    stratify: bool | str = Field(
        True,
        description="Keep the share of each label in every split: true, false, or the label column's name.",
    )


class Data(Part):
    """Where the examples are and what is done to them before training."""

    train: str | None = Field(None, description="CSV, TSV, JSONL or Parquet file; relative to the recipe's folder.")
    validation: str | None = Field(None, description="File with validation rows; cut from train where absent.")
    test: str | None = Field(None, description="File with test rows; cut from train where absent.")
    text: str = Field("text", description="Column with the text.")
    text_pair: str | None = Field(None, description="Column with a second text, for tasks on pairs.")
    label: str = Field("label", description="Column with the label.")
    encoding: str = Field("utf-8", description="Encoding of CSV, TSV and JSONL files.")
    rows: int | None = Field(
        None,
        ge=10,
        description="Use at most so many rows of `train`, drawn in the labels' proportion; given splits stay whole.",
    )
    repair: bool = Field(True, description="Repair broken characters (ftfy).")
    near_duplicates: bool = Field(True, description="Keep near-duplicates within one split.")
    split: Split = Field(Split(), description="How missing splits are cut.")
