"""Parse CoNLL-style files: a token and its tag on a line, an empty line between sentences."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl

from alloytune.errors import InputError

SUFFIXES = (".conll", ".bio", ".iob")
TAG = re.compile(r"O|[BIESLUMW]-\S+")


def parse_conll(path: Path, text: str) -> pl.DataFrame:
    """Give the columns `tokens` and `tags`, each cell a JSON list; the first column is the token, the last the tag.

    Columns are parted by tabs, or else by blanks. Lines with -DOCSTART- and comments before a sentence are passed over.
    Where no line has a tag, there is no column `tags`.
    """
    sentences: list[list[tuple[str, str | None]]] = [[]]
    untagged: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):  # other breaks and blanks of Unicode may be tokens
        bare = line.strip(" \t\r")
        cells = [cell.strip(" ") for cell in bare.split("\t")] if "\t" in bare else re.findall(r"[^ ]+", bare)
        if not line.strip():
            sentences.append([])
        elif cells[0] != "-DOCSTART-" and not (not sentences[-1] and _is_comment(cells)):
            if len(cells) < 2 or not cells[0]:
                untagged.append((number, line.strip()[:40]))
            sentences[-1].append((cells[0], cells[-1] if len(cells) > 1 else None))
    full = [sentence for sentence in sentences if sentence]
    has_tags = any(tag is not None for sentence in full for _, tag in sentence)
    if untagged and has_tags:
        number, shown = untagged[0]
        raise InputError(str(path), f"line {number} has no tag: {shown!r}", "write a token and its tag on a line")
    columns = {"tokens": [_write([token for token, _ in sentence]) for sentence in full]}
    if has_tags:
        columns["tags"] = [_write([tag for _, tag in sentence]) for sentence in full]
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def _is_comment(cells: list[str]) -> bool:
    """Tell a comment from the token `#`, which has a tag."""
    return cells[0].startswith("#") and not TAG.fullmatch(cells[-1])


def _write(texts: list[Any]) -> str:
    return json.dumps(texts, ensure_ascii=False)
