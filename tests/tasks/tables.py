"""Tables to learn from: every task's answer can be told from single words."""

import json
import random

import polars as pl

import tiny

TOPICS = {"film": tiny.GOOD[:3], "meal": tiny.BAD[:3], "room": tiny.GOOD[3:]}


def sentences(rows: int, seed: int = 0) -> list[list[str]]:
    """Give distinct sentences of known words."""
    draw = random.Random(seed)
    found: dict[str, list[str]] = {}
    while len(found) < rows:
        words = [*draw.choices(tiny.PLAIN[:6], k=draw.randint(2, 6)), str(draw.randrange(60)), str(draw.randrange(60))]
        found[" ".join(words)] = words
    return list(found.values())


def labelled_sets(rows: int) -> pl.DataFrame:
    """Give texts with the topics whose words stand in them."""
    draw = random.Random(1)
    texts, labels = [], []
    for words in sentences(rows):
        own = [topic for topic in TOPICS if draw.random() < 0.5]
        texts.append(" ".join([*words, *(draw.choice(TOPICS[topic]) for topic in own)]))
        labels.append(json.dumps(own))
    return pl.DataFrame({"text": texts, "labels": labels})


def numbered(rows: int) -> pl.DataFrame:
    """Give texts with 100 and ten more for every good word in them."""
    draw = random.Random(1)
    counts = [draw.randrange(4) for _ in range(rows)]
    texts = [
        " ".join(words + draw.choices(tiny.GOOD, k=count)) for words, count in zip(sentences(rows), counts, strict=True)
    ]
    return pl.DataFrame({"text": texts, "label": [100.0 + 10 * count for count in counts]})


def tagged(rows: int) -> pl.DataFrame:
    """Give tokens of which a good word is a PRAISE that goes on with the word after it, and a bad one a BLAME."""
    draw = random.Random(1)
    tokens, tags = [], []
    for words in sentences(rows):
        own = ["O"] * len(words)
        place = draw.randrange(len(words))
        kind = draw.choice(["PRAISE", "BLAME", None])
        if kind:
            words = [*words[:place], draw.choice(tiny.GOOD if kind == "PRAISE" else tiny.BAD), *words[place:]]
            own = [*own[:place], f"B-{kind}", *own[place:]]
            if kind == "PRAISE":
                own[place + 1] = "I-PRAISE"
        tokens.append(json.dumps(words))
        tags.append(json.dumps(own))
    return pl.DataFrame({"tokens": tokens, "tags": tags})


def spanned(rows: int) -> pl.DataFrame:
    """Give the sentences of `tagged` as texts with spans of characters."""
    table = tagged(rows)
    texts, spans = [], []
    for tokens, tags in zip(map(json.loads, table["tokens"]), map(json.loads, table["tags"]), strict=True):
        texts.append(" ".join(tokens))
        own: list[list[int | str]] = []
        start = 0
        for token, tag in zip(tokens, tags, strict=True):
            if tag.startswith("B-"):
                own.append([start, start + len(token), tag[2:]])
            elif tag.startswith("I-"):
                own[-1][1] = start + len(token)
            start += len(token) + 1
        spans.append(json.dumps(own))
    return pl.DataFrame({"text": texts, "spans": spans})


TABLES = {"multilabel": labelled_sets, "regression": numbered, "tagging": tagged}
