"""Prompts with pairs of answers, read from texts, single messages or whole conversations."""

import json
from collections.abc import Mapping, Sequence

import polars as pl

from alloytune.data.cells import read_json
from alloytune.data.rules import Sieved, sieve_by
from alloytune.tasks.dialogue import Message, UnfitChatError, read_messages

SIDES = ("chosen", "rejected")
STAND_INS = {"prompt": "chosen"}  # a conversation that is chosen begins with its prompt
_ASKED = "\n\nAssistant:"  # what the last answer stands behind in conversations written as text, as in HH-RLHF


def sift_pairs(table: pl.DataFrame) -> Sieved:
    """Part whole conversations into prompt and answers; drop rows that are no pair of different answers."""
    found = [_read_row({key: row[key] for key in ("prompt", *SIDES) if row.get(key)}) for row in table.to_dicts()]
    details = [one if isinstance(one, str) else None for one in found]
    kept, dropped = sieve_by(table, details, "no pair of answers")
    parted = [one for one in found if not isinstance(one, str)]
    names = [name for name in ("prompt", *SIDES) if name in table.columns]
    columns = [pl.Series(name, [row.get(name) for row in parted], dtype=pl.String) for name in names]
    return kept.with_columns(columns), dropped


def is_structured(cell: str) -> bool:
    """Tell a conversation, or a single message, from a text."""
    if not cell.lstrip().startswith(("[", "{")):
        return False
    try:
        value = read_json(cell)
    except ValueError:
        return False
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and bool({"content", "value"} & first.keys())


def read_answer(cell: str) -> str:
    """Read an answer: a text, a message, or a list of one message."""
    if not is_structured(cell):
        return cell
    messages = _read_talk(cell)
    if len(messages) > 1 or messages[-1]["role"] != "assistant":
        raise UnfitChatError("an answer is no single turn of the assistant")
    return messages[-1]["content"]


def _read_row(given: Mapping[str, str]) -> Mapping[str, str] | str:
    """Give a row with its answers apart from the prompt, or say why nothing can be learned of it."""
    try:
        parted = _part(given)
        answers = [read_answer(parted[side]) for side in SIDES if side in parted]
        if is_structured(parted["prompt"]):
            read_messages(parted["prompt"])
    except UnfitChatError as error:
        return str(error)
    if not all(answer.strip() for answer in answers):
        return "an answer is empty"
    return "both answers are the same" if len(answers) == 2 and answers[0] == answers[1] else parted


def _part(given: Mapping[str, str]) -> Mapping[str, str]:
    """Take the prompt off answers that are whole conversations; other rows stay as they are."""
    cells = [given[side] for side in SIDES if side in given]
    prompt = None if given["prompt"] == given.get("chosen") else given["prompt"]
    if len(cells) == len(SIDES) and all(map(is_structured, cells)):
        talks = [_read_talk(cell) for cell in cells]
        if all(len(talk) > 1 for talk in talks):
            return _part_talks(talks, prompt)
    if prompt is None or all(cell.startswith(prompt) and _ASKED in cell for cell in cells):
        return _part_texts(cells)
    return given


def _part_talks(talks: Sequence[list[Message]], prompt: str | None) -> dict[str, str]:
    """Part conversations that are the same but for their last messages, and that begin with the prompt, if any."""
    before, other = (talk[:-1] for talk in talks)
    if before != other:
        raise UnfitChatError("the conversations are not the same up to their last messages")
    if prompt is not None and not _begins_with(before, prompt):
        raise UnfitChatError("the conversations do not begin with the prompt")
    parts = (before, *(talk[-1] for talk in talks))
    return {key: json.dumps(part, ensure_ascii=False) for key, part in zip(("prompt", *SIDES), parts, strict=True)}


def _begins_with(before: Sequence[Message], prompt: str) -> bool:
    """Tell whether a prompt is the beginning of a conversation, or its first or last question."""
    if is_structured(prompt):
        asked = _read_talk(prompt)
        return list(before[: len(asked)]) == asked
    questions = [message["content"].strip() for message in before if message["role"] == "user"]
    return prompt.strip() in (*questions[:1], *questions[-1:])


def _part_texts(cells: Sequence[str]) -> dict[str, str]:
    """Part conversations that are written as texts behind what asks for the last answer."""
    parts = [cell.rpartition(_ASKED) for cell in cells]
    if len({before + asked for before, asked, _ in parts}) > 1 or not parts[0][1]:
        raise UnfitChatError("there is no prompt, and the answers are no conversations that begin alike")
    answers = (answer for *_, answer in parts)
    return {"prompt": parts[0][0] + _ASKED, **dict(zip(SIDES, answers, strict=False))}


def _read_talk(cell: str) -> list[Message]:
    """Read a conversation, or a single message as one."""
    return read_messages(cell if cell.lstrip().startswith("[") else f"[{cell}]")
