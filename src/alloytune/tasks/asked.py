"""The ways of writing examples of texts to be learned: what is asked, and what is wanted for an answer."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from alloytune.data.rules import Rules, Sieved, sieve_by
from alloytune.tasks.dialogue import (
    Message,
    UnfitChatError,
    instruction_messages,
    read_messages,
    require_answer,
    split_last_answer,
)

Form = Literal["instruction", "messages", "completion", "text", "source"]
Row = Mapping[str, str | None]


@dataclass(frozen=True)
class Asked:
    """One example before it is tokenized.

    `messages` stand before the answer that is `wanted`; without them it is `text` that stands there as it is. `wanted`
    is None where it is still to come. All of `text` is learned where `is_plain`.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    wanted: str | None = None
    is_plain: bool = False

    @property
    def as_text(self) -> str:
        """Give what is asked as one text, for models that read it apart from the answer."""
        return "\n\n".join(message["content"] for message in self.messages) or self.text


def form_of(columns: Collection[str]) -> Form:
    """Tell by its columns how examples are written."""
    of_column: dict[str, Form] = {"instruction": "instruction", "messages": "messages", "prompt": "completion"}
    return next(
        (of_column[column] for column in columns if column in of_column), "source" if "source" in columns else "text"
    )


def ask(row: Row, form: Form, prompt: str = "{source}") -> Asked:
    """Read a row. `prompt` is what is asked of a `source`. Raises UnfitChatError for messages that cannot be read."""
    if form == "text":
        return Asked(text=row["text"] or "", is_plain=True)
    if form == "completion":
        return Asked(text=row["prompt"] or "", wanted=row.get("completion"))
    if form == "messages":
        return _ask_messages(row["messages"] or "")
    if form == "instruction":
        messages = instruction_messages(row["instruction"] or "", row.get("input"), None)
        return Asked(tuple(messages), wanted=row.get("output"))
    content = prompt.replace("{source}", row["source"] or "")
    return Asked(({"role": "user", "content": content},), wanted=row.get("target"))


def rules_for(columns: Collection[str]) -> Rules:
    """Say what is to hold of rows with these columns."""
    form = form_of(columns)
    if form == "messages":
        return Rules(texts=("messages",), answers=(), sift=_drop_unreadable, answered=_drop_unanswered)
    if form == "completion":  # blanks where the two meet are part of them
        return Rules(texts=("prompt",), answers=("completion",), strips=False)
    if form == "text":
        return Rules(texts=("text",), answers=(), mended=("text",))
    given = ("instruction", "input") if form == "instruction" else ("source",)
    texts = tuple(name for name in given if name in columns or name in ("instruction", "source"))
    answer = "output" if form == "instruction" else "target"
    mended = tuple(name for name in (*texts, answer) if name in columns)
    return Rules(texts=texts, answers=(answer,), optional=frozenset({"input"}), mended=mended)


def _ask_messages(cell: str) -> Asked:
    messages = read_messages(cell)
    if messages[-1]["role"] != "assistant":
        return Asked(tuple(messages))
    last = messages[-1]["content"]
    return Asked(tuple(messages[:-1]), wanted=last if last.strip() else None)


def _drop_unreadable(table: pl.DataFrame) -> Sieved:
    """Drop rows whose messages cannot be read."""
    return sieve_by(table, [_why_not(cell) for cell in table["messages"]], "unreadable messages")


def _drop_unanswered(table: pl.DataFrame) -> Sieved:
    """Drop conversations in which the assistant says nothing; cut the others behind its last turn that is learned."""
    details = [_why_not(cell, require_answer) for cell in table["messages"]]
    kept, dropped = sieve_by(table, details, "no assistant turn")
    return kept.with_columns(pl.Series("messages", map(_through_last_answer, kept["messages"]), pl.String)), dropped


def _why_not(cell: str, require: Callable[[list[Message]], None] = lambda messages: None) -> str | None:
    try:
        require(read_messages(cell))
    except UnfitChatError as error:
        return str(error)
    return None


def _through_last_answer(cell: str) -> str:
    messages = read_messages(cell)
    before, _ = split_last_answer(messages)
    if len(before) + 1 == len(messages):
        return cell
    return json.dumps(messages[: len(before) + 1], ensure_ascii=False)
