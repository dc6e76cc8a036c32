"""The words of each task in a recipe: which columns its examples have, and by what it is scored.

A new task is an entry here, its settings in `alloytune.recipe.types.task`, and one file in `alloytune.tasks`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """One way of writing a task's examples: the keys of `data` that name their columns, in the columns' order.

    A column that is not optional and that no key names is the one of the key's own name. `unscored` are metrics of the
    task that examples so written cannot be scored by.
    """

    keys: tuple[str, ...]
    optional: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        """Give the keys of columns that must be there."""
        return tuple(key for key in self.keys if key not in self.optional)


@dataclass(frozen=True)
class TaskWords:
    """What a recipe may say of a task.

    `forms`: the ways of writing examples, the first for tables whose columns bear the keys' names. `metrics`: the first
    is what counts where nothing is said. `contradicts`: rows of the same text with different answers are a mistake in
    the data. `stratifies`: a row has one label, whose share splits can keep. `regularises`: the stage's regularisers
    that mean something. `undivided`: the loss holds the examples of an update against each other. `pools`: the head
    reads one vector of a text, as the model's class makes it.
    """

    about: str
    forms: tuple[Form, ...]
    metrics: tuple[str, ...]
    contradicts: bool = True
    stratifies: bool = False
    regularises: tuple[str, ...] = ()
    undivided: bool = False
    pools: bool = False

    def form(self, given: Collection[str]) -> Form | None:
        """Give the first form that has all of these keys."""
        return next((form for form in self.forms if set(given) <= set(form.keys)), None)

    def columns(self, given: Mapping[str, str]) -> dict[str, str]:
        """Give the column of the table for each key that is read, by the keys that are given."""
        form = self.form(given) or self.forms[0]
        return {key: given.get(key, key) for key in form.keys if key in form.required or key in given}


OF_ANSWERS = ("exact_match", "chrf", "bleu", "rouge_1", "rouge_2", "rouge_l")  # metrics of answers that are written

TASKS = {
    "classification": TaskWords(
        about="one label for a text or a pair of texts",
        forms=(Form(("text", "text_pair", "label"), optional=("text_pair",)),),
        metrics=("macro_f1", "accuracy", "loss", "calibration_error"),
        stratifies=True,
        pools=True,
        regularises=("label_smoothing", "r_drop"),
    ),
    "multilabel": TaskWords(
        about="any number of labels for a text or a pair of texts",
        forms=(Form(("text", "text_pair", "labels"), optional=("text_pair",)),),
        metrics=("micro_f1", "macro_f1", "average_precision", "loss"),
        pools=True,
    ),
    "regression": TaskWords(
        about="a number for a text or a pair of texts",
        forms=(Form(("text", "text_pair", "label"), optional=("text_pair",)),),
        metrics=("r2", "mae", "pearson", "spearman", "loss"),
        pools=True,
    ),
    "tagging": TaskWords(
        about="entities in a sentence, by tags of its tokens or spans of its characters",
        forms=(Form(("tokens", "tags")), Form(("text", "spans"))),
        metrics=("f1", "precision", "recall", "accuracy", "loss"),
        regularises=("label_smoothing", "r_drop"),
    ),
    "generation": TaskWords(
        about="an answer to an instruction, the assistant's turns of a dialogue, a completion, or plain text",
        forms=(
            Form(("instruction", "input", "output", "system"), optional=("input", "system")),
            Form(("messages",)),
            Form(("prompt", "completion")),
            Form(("text",), unscored=OF_ANSWERS),
        ),
        metrics=("loss", "perplexity", "exact_match", "chrf", "rouge_l"),
        contradicts=False,
        regularises=("label_smoothing", "r_drop"),
    ),
    "translation": TaskWords(
        about="a translation of a text",
        forms=(Form(("source", "target")),),
        metrics=("loss", "perplexity", "chrf", "bleu", "exact_match"),
        contradicts=False,
        regularises=("label_smoothing", "r_drop"),
    ),
    "summarization": TaskWords(
        about="a summary of a text",
        forms=(Form(("source", "target")),),
        metrics=("loss", "perplexity", "rouge_1", "rouge_2", "rouge_l", "chrf"),
        contradicts=False,
        regularises=("label_smoothing", "r_drop"),
    ),
    "embedding": TaskWords(
        about="one vector per text, so that a query lies near its document (pairs, or triplets with a negative)",
        forms=(Form(("query", "document", "negative"), optional=("negative",)),),
        metrics=("recall_at_10", "ndcg_at_10", "mrr", "loss", "recall_at_1", "recall_at_5"),
        contradicts=False,
        undivided=True,
    ),
    "preference": TaskWords(
        about="of two answers to a prompt, the chosen one is to become likelier (DPO)",
        forms=(Form(("prompt", "chosen", "rejected")),),
        metrics=("accuracy", "margin", "reward_accuracy", "loss"),
        contradicts=False,
    ),
    "language_modelling": TaskWords(
        about="tokens foretold in text without labels: masked ones by encoders, the next one by decoders",
        forms=(Form(("text",)),),
        metrics=("loss", "perplexity", "accuracy"),
        contradicts=False,
        regularises=("label_smoothing", "r_drop"),
    ),
}

COLUMN_KEYS = tuple(dict.fromkeys(key for words in TASKS.values() for form in words.forms for key in form.keys))
