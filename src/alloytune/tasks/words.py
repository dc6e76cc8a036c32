"""Sentences as words with tags: from lists of tokens, or from a text with character spans."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import polars as pl
import regex as re  # whose words hold the signs that are written upon their letters, as those of Hindi and Arabic
from seqeval.metrics.sequence_labeling import get_entities

from alloytune.data.cells import as_string, read_json
from alloytune.data.conll import TAG
from alloytune.data.rules import Sieved, sieve_by

OUTSIDE = "O"
_TAGS = "tags are O, B-TYPE, I-TYPE"
# How BILOU has the last word of an entity and the only one, and BMES and its kin one in the middle and the only one.
_AS_SEQEVAL = {"L-": "E-", "U-": "S-", "M-": "I-", "W-": "S-"}
# Writings without blanks between words: every character is a word of its own, so that any span can be told.
_ALONE = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, Kana, Chinese
_WORD = re.compile(rf"[{_ALONE}]\p{{M}}*|[^\W_{_ALONE}]+|[^\w\s]|_")
_FIRST, _LAST = re.compile(rf"[{_ALONE}]"), re.compile(rf"[{_ALONE}]\p{{M}}*$")

# What the first character, the one behind the last and the type are called by those who write spans.
_KEYS = (("start", "start_offset"), ("end", "end_offset"), ("label", "labels", "entity_group", "type", "tag"))

Span = tuple[int, int, str]  # first character, the one behind the last, type


@dataclass(frozen=True)
class Sentence:
    """Words, the characters of the text that each covers (none where tokens were given), and tags where known."""

    words: list[str]
    offsets: list[tuple[int, int]]
    tags: list[str] | None


def sift_tokens(table: pl.DataFrame) -> Sieved:
    """Write `tokens` and `tags` as JSON lists; drop rows without a token, and those whose tags do not fit.

    Tags of BILOU and BMES become those of BIOES, which mean the same.
    """
    tokens = [read_list(cell) for cell in table["tokens"]]
    table = table.with_columns(pl.Series("tokens", [_write(row) for row in tokens], dtype=pl.String))
    table, dropped = sieve_by(table, [None if row else "an empty list" for row in tokens], "no tokens")
    if "tags" not in table.columns:
        return table, dropped
    tags = [[_AS_SEQEVAL.get(tag[:2], tag[:2]) + tag[2:] for tag in read_list(cell)] for cell in table["tags"]]
    table = table.with_columns(pl.Series("tags", [_write(row) for row in tags], dtype=pl.String))
    pairs = list(zip([row for row in tokens if row], tags, strict=True))
    lengths = [None if len(one) == len(two) else f"{len(one)} tokens, {len(two)} tags" for one, two in pairs]
    table, uneven = sieve_by(table, lengths, "tags do not match the tokens")
    wrong = [next((tag for tag in read_list(cell) if not TAG.fullmatch(tag)), None) for cell in table["tags"]]
    table, odd = sieve_by(table, [None if tag is None else f"{tag!r} ({_TAGS})" for tag in wrong], "no BIO tag")
    return table, dropped + uneven + odd


def sift_spans(table: pl.DataFrame) -> Sieved:
    """Write `spans` as JSON lists of [start, end, type] in the text's order; drop rows whose spans cannot be used."""
    if "spans" not in table.columns:
        return table, []
    found = [_read_spans(cell) for cell in table["spans"]]
    unread = [one if isinstance(one, str) else None for one in found]
    table, dropped = sieve_by(table, unread, "spans cannot be read")
    lists = [sorted(one) for one in found if not isinstance(one, str)]
    table = table.with_columns(pl.Series("spans", [_write(one) for one in lists], dtype=pl.String))
    outside = [
        next((f"{list(span)} in {len(text)} characters" for span in spans if not _is_inside(span, text)), None)
        for text, spans in zip(table["text"], lists, strict=True)
    ]
    table, beyond = sieve_by(table, outside, "span outside its text")
    crossing = [_overlap(read_spans(cell)) for cell in table["spans"]]
    table, crossed = sieve_by(table, crossing, "spans overlap")
    return table, dropped + beyond + crossed


def read_sentences(table: pl.DataFrame) -> list[Sentence]:
    """Read the rows of a sifted table; tags only where the table has them."""
    if "tokens" in table.columns:
        tags = [read_list(cell) for cell in table["tags"]] if "tags" in table.columns else [None] * table.height
        return [Sentence(read_list(cell), [], own) for cell, own in zip(table["tokens"], tags, strict=True)]
    spans = [read_spans(cell) for cell in table["spans"]] if "spans" in table.columns else [None] * table.height
    sentences = []
    for text, own in zip(table["text"], spans, strict=True):
        offsets = [match.span() for match in _WORD.finditer(text)]
        words = [text[start:end] for start, end in offsets]
        sentences.append(Sentence(words, offsets, None if own is None else tag_words(offsets, own)))
    return sentences


def glued_words(sentence: Sentence) -> frozenset[int]:
    """Give the words that follow another one without a blank.

    Where tokens were given these are the ones of writings that have none.
    """
    if sentence.offsets:
        places = enumerate(pairwise(sentence.offsets), 1)
        return frozenset(n for n, ((_, end), (start, _)) in places if start == end)
    words = enumerate(pairwise(sentence.words), 1)
    return frozenset(n for n, (one, two) in words if _LAST.search(one) and _FIRST.match(two))


def tag_words(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[str]:
    """Tag the words that spans touch: B- for a span's first word, I- for others.

    A span that begins or ends inside a word is that of the whole word; a word that two spans touch is the first's.
    """
    tags = [OUTSIDE] * len(offsets)
    for first, last, kind in spans:
        touched = [n for n, (start, end) in enumerate(offsets) if start < last and first < end]
        free = [n for n in touched if tags[n] == OUTSIDE]
        for place, n in enumerate(free):
            tags[n] = f"{'I' if place else 'B'}-{kind}"
    return tags


def spans_of(tags: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[Span]:
    """Give the spans of characters that tags stand for."""
    return [(offsets[first][0], offsets[last][1], kind) for kind, first, last in get_entities(list(tags))]


def is_on_words(text: str, spans: Sequence[Span]) -> bool:
    """Tell whether all spans begin and end with words."""
    offsets = [match.span() for match in _WORD.finditer(text)]
    return [tuple(span) for span in spans_of(tag_words(offsets, spans), offsets)] == [tuple(span) for span in spans]


def read_list(cell: str) -> list[str]:
    """Read a JSON list as texts; what is none is parted at its blanks."""
    try:
        value = read_json(cell)
    except ValueError:
        return cell.split()
    return [as_string(item) or "" for item in value] if isinstance(value, list) else cell.split()


def read_spans(cell: str) -> list[Span]:
    """Read what `sift_spans` wrote."""
    return [(start, end, kind) for start, end, kind in json.loads(cell)]


def _read_spans(cell: str) -> list[Span] | str:
    """Give the spans of a cell, or why there are none to read."""
    try:
        value = read_json(cell)
    except ValueError:
        return f"{cell[:60]!r} is not JSON"
    if not isinstance(value, list):
        return f"{cell[:60]!r} is no list"
    spans: list[Span] = []
    for item in value:
        parts: Any = [_first_of(item, keys) for keys in _KEYS] if isinstance(item, dict) else item
        span = _read_span(*parts) if isinstance(parts, list) and len(parts) == 3 else None
        if span is None:
            return f"{json.dumps(item, ensure_ascii=False)[:60]} is no [start, end, type]"
        spans.append(span)
    return spans


def _first_of(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _read_span(start: Any, end: Any, kind: Any) -> Span | None:
    """Give a span whose places may be texts, and whose type may be a list of one; None where it is no span."""
    places = [as_string(place) or "" for place in (start, end)]
    if isinstance(kind, list) and len(kind) == 1:
        kind = kind[0]
    if (
        not all(re.fullmatch(r"-?\d+(\.0+)?", place) for place in places)
        or not isinstance(kind, str)
        or not kind.strip()
    ):
        return None
    first, last = (int(place.partition(".")[0]) for place in places)
    return first, last, kind.strip()


def _is_inside(span: Span, text: str) -> bool:
    return 0 <= span[0] < span[1] <= len(text) and bool(text[span[0] : span[1]].strip())


def _overlap(spans: Sequence[Span]) -> str | None:
    for one, two in pairwise(spans):
        if two[0] < one[1]:
            return f"{list(one)} and {list(two)}"
    return None


def _write(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
