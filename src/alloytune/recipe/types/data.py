"""The part of a recipe that says where the examples are."""

from pydantic import Field

from alloytune.recipe.tasks import COLUMN_KEYS
from alloytune.recipe.types.values import Part, Share


class Split(Part):
    """How validation and test are cut from the training rows where no file gives them."""

    validation: Share = Field(0.1, description="Share of the rows for validation, such as 10%.")
    test: Share = Field(0.1, description="Share of the rows for the test at the end.")
    stratify: bool | str | None = Field(
        None,
        description=(
            "Keep the share of each label in every split: true, false, or the label column's name. Where absent, true "
            "in tasks with one label per row."
        ),
    )


class Data(Part):
    """Where the examples are and what is done to them before training.

    Which columns there are depends on the [task](#tasks).
    """

    train: str | None = Field(
        None, description="CSV, TSV, JSONL, JSON, Parquet, CoNLL or plain text file, relative to the recipe's folder."
    )
    validation: str | None = Field(None, description="File with validation rows; cut from train where absent.")
    test: str | None = Field(None, description="File with test rows; cut from train where absent.")
    text: str | None = Field(None, description="Column with the text; `text` where absent.")
    text_pair: str | None = Field(None, description="Column with a second text, for tasks on pairs.")
    label: str | None = Field(None, description="Column with the label, or the number; `label` where absent.")
    labels: str | None = Field(None, description="Column with a JSON list of labels; `labels` where absent.")
    tokens: str | None = Field(
        None, description="Column with the tokens, a JSON list or parted by blanks; `tokens` where absent."
    )
    tags: str | None = Field(None, description="Column with a BIO tag for every token; `tags` where absent.")
    spans: str | None = Field(
        None,
        description=(
            "Column with the entities of a text: a JSON list of [start, end, type], or of mappings with start, end and "
            "label, in characters."
        ),
    )
    instruction: str | None = Field(None, description="Column with what is to be done; `instruction` where absent.")
    input: str | None = Field(None, description="Column with what an instruction is about; may be empty.")
    output: str | None = Field(None, description="Column with the answer to an instruction; `output` where absent.")
    system: str | None = Field(None, description="Column with what is said to the model before an instruction.")
    messages: str | None = Field(
        None, description="Column with conversations, lists of {role, content} or {from, value}; JSON in a CSV file."
    )
    prompt: str | None = Field(
        None,
        description=(
            "Column with the beginning of a text, read as it stands; in preferences it may be messages for the chat "
            "template."
        ),
    )
    completion: str | None = Field(None, description="Column with what follows the prompt, blanks included.")
    source: str | None = Field(None, description="Column with the text to translate or to sum up.")
    target: str | None = Field(None, description="Column with its translation or summary.")
    query: str | None = Field(None, description="Column with the query; `query` where absent.")
    document: str | None = Field(None, description="Column with the query's document; `document` where absent.")
    negative: str | None = Field(
        None, description="Column with a document that is wrong for the query, or a list of several."
    )
    chosen: str | None = Field(None, description="Column with the better answer; `chosen` where absent.")
    rejected: str | None = Field(None, description="Column with the worse answer; `rejected` where absent.")
    encoding: str = Field("utf-8", description="Encoding of files that are text.")
    rows: int | None = Field(
        None,
        ge=10,
        description="Use at most so many rows of `train`, drawn in the labels' proportion; given splits stay whole.",
    )
    repair: bool = Field(True, description="Repair broken characters (ftfy).")
    near_duplicates: bool = Field(True, description="Keep near-duplicates within one split.")
    split: Split = Field(Split(), description="How missing splits are cut.")

    @property
    def named(self) -> dict[str, str]:
        """Give the columns that are named, by key."""
        named = {key: getattr(self, key) for key in COLUMN_KEYS}
        return {key: column for key, column in named.items() if column is not None}
