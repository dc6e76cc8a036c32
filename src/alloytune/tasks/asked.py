"""The ways of writing examples of texts to be learned: what is asked, and what is wanted for an answer."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
    is None where it is still to come. All of `text` is learned where `is_plain`. `passage` tells which characters of
    the last message are what the rest of it asks about, such as a text to summarise.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    wanted: str | None = None
    is_plain: bool = False
    passage: tuple[int, int] | None = None

    @property
    def as_text(self) -> str:
        """Give what is asked as one text, for models that read it apart from the answer."""
        return "\n\n".join(message["content"] for message in self.messages) or self.text

    def shortened(self, num_characters: int) -> "Asked":
        """Keep so many characters of the passage, from its beginning."""
        assert self.passage is not None
        start, end = self.passage
        *before, last = self.messages
        content = last["content"]
        kept = content[start : start + num_characters].rstrip()
        short = {**last, "content": content[:start] + kept + content[end:]}
        return replace(self, messages=(*before, short), passage=(start, start + len(kept)))


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
        system, given = row.get("system"), row.get("input")
        messages = instruction_messages(row["instruction"] or "", given, system)
        length = len(messages[-1]["content"])
        passage = (length - len(given), length) if given else None
        return Asked(tuple(messages), wanted=row.get("output"), passage=passage)
    source = row["source"] or ""
    content, start = prompt.replace("{source}", source), prompt.find("{source}")
    passage = (start, start + len(source)) if prompt.count("{source}") == 1 else None
    return Asked(({"role": "user", "content": content},), wanted=row.get("target"), passage=passage)


def rules_for(columns: Collection[str]) -> Rules:
    """Say what is to hold of rows with these columns."""
    form = form_of(columns)
    if form == "messages":
        return Rules(texts=("messages",), answers=(), sift=_drop_unreadable, answered=_drop_unanswered)
    if form == "completion":  # blanks where the two meet are part of them
        return Rules(texts=("prompt",), answers=("completion",), strips=False)
    if form == "text":
        return Rules(texts=("text",), answers=(), mended=("text",))
    given = ("instruction", "input", "system") if form == "instruction" else ("source",)
    texts = tuple(name for name in given if name in columns or name in ("instruction", "source"))
    answer = "output" if form == "instruction" else "target"
    mended = tuple(name for name in (*texts, answer) if name in columns)
    return Rules(
        texts=texts, answers=(answer,), optional=frozenset({"system", "input"}), mended=mended, unescapes=False
    )


def _require_question(messages: Sequence[Message]) -> None:
    """Raise UnfitChatError where the assistant's last turn that is learned stands alone."""
    if not split_last_answer(messages)[0]:
        raise UnfitChatError("the only message is the assistant's")


def _ask_messages(cell: str) -> Asked:
    messages = read_messages(cell)
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        raise UnfitChatError("the only message is the assistant's")
    if messages[-1]["role"] != "assistant":
        return Asked(tuple(messages))
    last = messages[-1]["content"]
    return Asked(tuple(messages[:-1]), wanted=last if last.strip() else None)


def _drop_unreadable(table: pl.DataFrame) -> Sieved:
    """Drop rows whose messages cannot be read."""
    return sieve_by(table, [_why_not(cell) for cell in table["messages"]], "unreadable messages")


def _drop_unanswered(table: pl.DataFrame) -> Sieved:
    """Drop conversations in which the assistant says nothing, or is asked nothing; cut the others behind its last turn.

    That is the last one that is learned.
    """
    details = [_why_not(cell, require_answer) for cell in table["messages"]]
    kept, dropped = sieve_by(table, details, "no assistant turn")
    details = [_why_not(cell, _require_question) for cell in kept["messages"]]
    kept, unasked = sieve_by(kept, details, "nothing before the answer")
    dropped += unasked
    return kept.with_columns(pl.Series("messages", map(_through_last_answer, kept["messages"]), pl.String)), dropped


def _why_not(cell: str, require: Callable[[Sequence[Message]], None] = lambda messages: None) -> str | None:
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
