"""Read a table file with every cell a string."""

import difflib
from pathlib import Path
from typing import Any

import polars as pl

from alloytune.data import conll
from alloytune.data.columns import require_rows
from alloytune.data.encoding import decode_file
from alloytune.data.parse import json_records, parse_csv, parse_json, parse_lines, parse_parquet, parse_table, peek_json
from alloytune.errors import InputError

PEEKED = 2**20  # characters of JSON
JSON = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".csv", ".tsv", *JSON, ".parquet", *conll.SUFFIXES, ".txt")


def read_table(path: Path, encoding: str = "utf-8", option: str = "--encoding ") -> pl.DataFrame:
    """Read a table with every column as strings; an empty or missing cell is null.

    Raise an InputError that names the place for a file that is missing, empty, cut short or malformed; `option` stands
    before an encoding where a user names one.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise InputError(str(path), "it is a folder", f"name a file in it: {', '.join(SUFFIXES)}")
    if suffix not in SUFFIXES:
        what = f'"{path.suffix}" is no kind of table read here' if suffix else "its name does not tell what it holds"
        raise InputError(str(path), what, f"give one of {', '.join(SUFFIXES)}")
    content = _read_bytes(path)
    if suffix == ".parquet":
        table = parse_parquet(path, content)
    else:
        text = decode_file(path, content, encoding, option)
        parse = {".csv": parse_csv, ".tsv": parse_csv, ".txt": parse_lines}
        parse |= dict.fromkeys(conll.SUFFIXES, conll.parse_conll) | dict.fromkeys(JSON, parse_json)
        table = parse[suffix](path, text)
    require_rows(table, path)
    return table


def any_table(data: Any) -> pl.DataFrame:
    """Give a table with every column as strings: of a file's path, or held in memory."""
    return read_table(Path(data)) if isinstance(data, str | Path) else parse_table(data)


def read_records(path: Path, encoding: str = "utf-8") -> list[dict[str, object]] | None:
    """Give the rows of a table that `read_table` has read, with JSON's types where it is JSON; else None."""
    if path.suffix.lower() not in JSON:
        return None
    return json_records(path, decode_file(path, _read_bytes(path), encoding, "--encoding "))


def peek_columns(path: Path, encoding: str = "utf-8") -> list[str]:
    """Give the columns that a table begins with: CSV's header, the keys of the first JSON objects, Parquet's schema.

    None of what cannot be read so; why not, `read_table` says.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return list(pl.read_parquet_schema(path))
        with path.open(encoding=encoding, newline="") as stream:
            if path.suffix.lower() in JSON:
                return peek_json(stream.read(PEEKED).removeprefix("\ufeff"))
            lines = (line for line in stream if line.strip("\ufeff \t\r\n"))
            first = next(lines, "").removeprefix("\ufeff")
            first += next(lines, "") if first.startswith("sep=") else ""
        return parse_csv(path, first).columns if path.suffix.lower() in (".csv", ".tsv") else []
    except (OSError, LookupError, ValueError, InputError, pl.exceptions.PolarsError):
        return []


def require_file(path: Path) -> None:
    """Raise an InputError that names the nearest file where there is none."""
    if not path.exists():
        raise InputError(str(path), "there is no such file", _nearest_file(path))


def _read_bytes(path: Path) -> bytes:
    require_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"it cannot be read ({error.strerror})", "give a file that can be") from None
    if not content.strip():
        raise InputError(str(path), "the file is empty", "give a table with examples")
    return content


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"nor is there a folder {path.parent}"
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    nearest = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.with_name(nearest[0])}?" if nearest else "check the path"
