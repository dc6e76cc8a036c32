"""Parse CSV, TSV, JSON, Parquet, plain text and tables held in memory, every cell a string.

CSV goes through the standard library rather than polars, because it is the one parser that can say on which line
a mistake is; 38,158 rows take about a tenth of a second.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from alloytune.data.cells import as_string, as_strings
from alloytune.data.columns import require_unique
from alloytune.errors import InputError

DELIMITERS = ",;\t|"  # of CSV; the first of those that are as frequent


def parse_csv(path: Path, text: str) -> pl.DataFrame:
    """Parse CSV, or TSV by the suffix; a record number counts no blank lines."""
    if said := re.match(r"sep=(.)[ \t]*\r?(?=\n)", text):  # which spreadsheets write into the first line
        return _parse_records(path, text[said.end() :], said[1], csv.QUOTE_MINIMAL)
    delimiter = _delimiter(path, text)
    if path.suffix.lower() == ".tsv":
        return _parse_tsv(path, text, delimiter)
    return _parse_records(path, text, delimiter, csv.QUOTE_MINIMAL)


def _parse_tsv(path: Path, text: str, delimiter: str) -> pl.DataFrame:
    """Parse with quotation marks around cells, or as characters like any other, as many TSV files have them.

    A cell of several lines is rather two stray marks, where every line is a record without them.
    """
    try:
        table = _parse_records(path, text, delimiter, csv.QUOTE_MINIMAL)
    except InputError:
        return _parse_records(path, text, delimiter, csv.QUOTE_NONE)
    if not any(column.str.contains("\n", literal=True).any() for column in table):
        return table
    try:
        return _parse_records(path, text, delimiter, csv.QUOTE_NONE)
    except InputError:
        return table


def _delimiter(path: Path, text: str) -> str:
    """Tab for TSV; for CSV what stands most often in the header: comma, semicolon (of spreadsheets), tab or bar."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    header = text.lstrip().partition("\n")[0]
    return max(DELIMITERS, key=header.count)


def _parse_records(path: Path, text: str, delimiter: str, quoting: Literal[0, 3]) -> pl.DataFrame:
    limit = csv.field_size_limit(max(len(text), 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    start = 1
    header: list[str] = []
    records: list[list[str]] = []
    try:
        for record in reader:
            if record and not header:
                header = [name.strip() for name in record]
                require_unique(path, header)
            elif record:
                _require_width(path, start, record, header)
                records.append(record)
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            str(path),
            f"the record that starts on line {start} is malformed ({error})",
            "close its quotation marks, and double those inside a quoted cell",
        ) from None
    finally:
        csv.field_size_limit(limit)
    columns = zip(*records, strict=True) if records else [()] * len(header)
    return pl.DataFrame(
        [
            pl.Series(name, [cell or None for cell in cells], dtype=pl.String)
            for name, cells in zip(header, columns, strict=True)
        ]
    )


def _require_width(path: Path, line: int, record: list[str], header: list[str]) -> None:
    if len(record) != len(header):
        raise InputError(
            str(path),
            f"line {line} has {len(record)} cells, but the header has {len(header)}",
            "put cells that contain the delimiter, or a line break, between quotation marks",
        )


def parse_lines(path: Path, text: str) -> pl.DataFrame:
    """Parse plain text: a row of the column `text` for every line that is not blank."""
    return pl.DataFrame(
        {"text": [line.strip() for line in text.split("\n") if line.strip()]}, schema={"text": pl.String}
    )


def parse_json(path: Path, text: str) -> pl.DataFrame:
    """Parse JSON objects, one a line or in one array; a key missing from some is null there."""
    return _table_of_records(path, json_records(path, text))


def json_records(path: Path, text: str) -> list[dict[str, object]]:
    """Give the JSON objects of a text as they are: one a line, or one array of them."""
    if text.lstrip().startswith("["):
        return _parse_array(path, text)
    # Not splitlines: JSON strings may hold U+2028 and other characters that it breaks at.
    lines = enumerate(text.split("\n"), 1)
    try:
        return [_parse_json(path, line, source) for line, source in lines if source.strip()]
    except InputError:
        _require_several(path, text)
        raise


def _parse_array(path: Path, text: str) -> list[dict[str, object]]:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}, {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(str(path), f"its array is not JSON ({where})", "write [{...}, {...}]") from None
    return [_require_object(path, f"item {number}", record) for number, record in enumerate(records, 1)]


def _require_several(path: Path, text: str) -> None:
    """Raise an InputError where a file whose lines are no rows is one object over several of them."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(whole, dict):
        return
    shown = ", ".join(f'"{name}"' for name in list(whole)[:5])
    raise InputError(str(path), f"it is one JSON object, with {shown}, not one a row", "write [{...}, {...}]")


def _parse_json(path: Path, line: int, source: str) -> dict[str, object]:
    try:
        record = json.loads(source)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        remedy = "write one JSON object a line, or all in one array"
        raise InputError(str(path), f"line {line} is not JSON ({reason})", remedy) from None
    return _require_object(path, f"line {line}", record)


def _require_object(path: Path, place: str, record: object) -> dict[str, object]:
    if not isinstance(record, dict):
        shown = json.dumps(record, ensure_ascii=False)[:40]
        raise InputError(str(path), f"{place} is no JSON object: {shown}", 'write {"column": value, ...}')
    return record


def peek_json(text: str) -> list[str]:
    """Give the keys of the objects that a text of JSON begins with; the last may be cut short."""
    names: dict[str, None] = {}
    decoder, place = json.JSONDecoder(), 0
    start = re.compile(r"[\s,\[]*(?=\{)")
    while found := start.match(text, place):
        try:
            record, place = decoder.raw_decode(text, found.end())
        except ValueError:
            break
        names |= dict.fromkeys(map(str.strip, record))
    return list(names)


def parse_parquet(path: Path, content: bytes) -> pl.DataFrame:
    """Parse Parquet."""
    try:
        return as_strings(pl.read_parquet(io.BytesIO(content)), path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(str(path), f"it is no complete Parquet file ({reason})", "copy or write it again") from None


def parse_table(data: Any) -> pl.DataFrame:
    """Parse a table held in memory: polars or pandas data frame, list of dicts, dict of lists, or what polars takes."""
    if isinstance(data, pl.DataFrame):
        return as_strings(data)
    if hasattr(data, "columns") and hasattr(data, "iloc"):  # pandas, which is no dependency
        return _table_of_columns("table", list(data.columns), [data.iloc[:, n] for n in range(len(data.columns))])
    if isinstance(data, Mapping):
        return _table_of_columns("table", list(data), list(data.values()))
    if isinstance(data, list | tuple | Iterator):
        records = list(data)
        if not all(isinstance(record, Mapping) for record in records):
            raise _no_table(data, "not every item is a dict")
        return _table_of_records("table", records)
    try:
        return as_strings(pl.DataFrame(data, strict=False))
    except (ImportError, TypeError, ValueError, pl.exceptions.PolarsError) as error:  # without pyarrow, of a series
        raise _no_table(data, str(error)) from error


def _no_table(data: object, reason: str) -> InputError:
    what = f"{type(data).__name__} is no table ({' '.join(reason.split())[:120]})"
    return InputError("data", what, "give a path, a data frame or a list of dicts")


def _table_of_records(where: Path | str, records: Sequence[Mapping[Any, object]]) -> pl.DataFrame:
    """Give the union of the records' keys as columns; a key missing from some is null there."""
    names = list(dict.fromkeys(name for record in records for name in record))
    return _table_of_columns(where, names, [[record.get(name) for record in records] for name in names])


def _table_of_columns(where: Path | str, names: Sequence[object], columns: Sequence[Any]) -> pl.DataFrame:
    """Give columns as strings, under their names without blanks around them."""
    headings = [str(name).strip() for name in names]
    require_unique(where, headings)
    cells = [_cells_of(heading, column) for heading, column in zip(headings, columns, strict=True)]
    if len({len(column) for column in cells}) > 1:
        lengths = ", ".join(f'"{heading}" {len(column)}' for heading, column in zip(headings, cells, strict=True))
        raise InputError(str(where), f"the columns differ in length: {lengths}", "give one cell a row in each")
    return pl.DataFrame(
        [
            pl.Series(heading, [as_string(cell) for cell in column], dtype=pl.String)
            for heading, column in zip(headings, cells, strict=True)
        ]
    )


def _cells_of(heading: str, column: Any) -> list[object]:
    for method in ("to_list", "tolist"):  # a series' or an array's, which give plain Python values
        if hasattr(column, method):
            return list(getattr(column, method)())
    if isinstance(column, Iterable) and not isinstance(column, str | bytes | Mapping):
        return list(column)
    raise InputError("data", f'"{heading}" holds one {type(column).__name__}, not a list', "give one cell a row")
