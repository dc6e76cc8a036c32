"""Every kind of file gives the same strings, and a broken one says where it is broken."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alloytune.data.cells import as_strings, read_json, written_alike
from alloytune.data.columns import require_columns
from alloytune.data.encoding import guess_encoding
from alloytune.data.parse import parse_table
from alloytune.data.prepare import prepare
from alloytune.data.read import peek_columns, read_table
from alloytune.errors import InputError
from alloytune.tasks.labels import sort_naturally
from data.example_tables import labelled
from tasks.tables import TABLES


def refusal(path: Path, content: bytes | None = None, encoding: str = "utf-8") -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(path, encoding)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


ROWS = {"text": ["one", 'two "quoted",\nover lines', "三，\u2028"], "label": ["01", "2", "10"]}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "json", "parquet"])
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / f"rows.{suffix}", pl.DataFrame(ROWS)
    match suffix:
        case "csv":
            table.write_csv(path)
        case "tsv":
            table.write_csv(path, separator="\t")
        case "parquet":
            table.write_parquet(path)
        case "json":
            path.write_text(json.dumps(table.to_dicts(), indent=2), encoding="utf-8")
        case _:
            table.write_ndjson(path)
    assert read_table(path).equals(table)
    assert peek_columns(path) == table.columns


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_any_text_survives_csv(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    table = pl.DataFrame({"text": texts, "label": ["x"] * len(texts)})
    table.write_csv(path, quote_style="always")
    assert read_table(path).equals(table)


def test_numbers_become_the_words_they_look_like(tmp_path: Path) -> None:
    frame = pd.DataFrame({"count": [1.0, None, 3.0], "share": [0.5, 2.0, 1e-7]})
    cells = as_strings(pl.DataFrame({"count": frame["count"].to_list(), "share": frame["share"].to_list()}))
    assert cells.to_dict(as_series=False) == {"count": ["1", None, "3"], "share": ["0.5", "2", "1e-07"]}
    path = tmp_path / "rows.jsonl"
    lines = [{"a": 1, "b": True, "c": ["x"]}, {"a": 1.0, "b": None}, {"a": "01", "d": "\ud800"}]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    assert read_table(path).to_dict(as_series=False) == {
        "a": ["1", "1", "01"],
        "b": ["true", None, None],
        "c": ['["x"]', None, None],
        "d": [None, None, "?"],
    }


def test_lists_are_read_however_they_are_held() -> None:
    """Pandas gives lists of Parquet as arrays; a set has no order, and is written in that of its texts."""
    held = [["b", "a"], ("b", "a"), np.array(["b", "a"], dtype=object), {"b", "a"}, np.array([1, 2]), np.array(3.0)]
    talk = np.array([{"role": "user", "parts": np.array(["x"], dtype=object), "n": np.int64(1)}], dtype=object)
    cells = parse_table(pd.DataFrame({"cell": [*held, talk]}))["cell"].to_list()
    assert cells[:4] == ['["b", "a"]'] * 3 + ['["a", "b"]']
    assert cells[4:] == ["[1, 2]", "3", '[{"role": "user", "parts": ["x"], "n": 1}]']


@pytest.mark.parametrize("task", ["tagging", "multilabel"])
def test_a_table_of_pandas_with_lists_in_it_is_that_of_a_file(task: str) -> None:
    table = TABLES[task](20)
    frame = pd.DataFrame(table.to_dict(as_series=False))
    for column in set(table.columns) - {"text"}:
        frame[column] = [np.array(json.loads(cell), dtype=object) for cell in table[column]]
    assert parse_table(frame).equals(table)


def test_a_mark_and_semicolons_of_spreadsheets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbftext;label\r\n"1,5; so";a\r\n\r\nx;b\r\n')
    assert read_table(path).rows() == [("1,5; so", "a"), ("x", "b")]
    assert read_table(path).columns == ["text", "label"]


@pytest.mark.parametrize("mark", ["\t", "|", ";"])
def test_other_delimiters_of_csv_are_taken_from_the_header(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"text{mark}label\nwell, so{mark}a\nx{mark}b\n", encoding="utf-8")
    assert read_table(path).rows() == [("well, so", "a"), ("x", "b")]
    assert peek_columns(path) == ["text", "label"]


def test_whole_numbers_are_the_same_labels_however_they_are_written() -> None:
    """pandas writes 1 as 1.0 into a column in which a number is missing."""
    given, other = (pl.DataFrame({"label": cells}) for cells in (["1.0", None, "2.0"], ["1", "2"]))
    found = [table["label"].to_list() for table in written_alike([given, other], "label")]
    assert found == [["1", None, "2"], ["1", "2"]]
    half = pl.DataFrame({"label": ["1.0", "1.5"]})
    assert written_alike([half, given], "label")[0].equals(half)
    assert written_alike([given], "other")[0].equals(given)


def test_truth_values_are_the_same_labels_however_they_are_written() -> None:
    """pandas writes True into CSV, and gives true where it holds it."""
    written, held = pl.DataFrame({"label": ["True", None, "False"]}), as_strings(pl.DataFrame({"label": [True, False]}))
    found = [table["label"].to_list() for table in written_alike([written, held], "label")]
    assert found == [["true", None, "false"], ["true", "false"]]
    with_others = pl.DataFrame({"label": ["True", "Unknown"]})
    assert written_alike([with_others, written], "label")[0].equals(with_others)


def test_the_first_line_of_a_spreadsheet_names_the_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfsep=;\r\ntext, long;label\r\nwell, so;a\r\nx\r\n")
    assert "line 4 has 1 cells" in refusal(path)
    path.write_bytes(path.read_bytes().removesuffix(b"x\r\n"))
    assert read_table(path).rows() == [("well, so", "a")]
    assert peek_columns(path) == ["text, long", "label"]


def test_tsv_without_quoting_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"Well\t1\nsaid" he\t0\n', encoding="utf-8")
    assert read_table(path).rows() == [('"Well', "1"), ('said" he', "0")]


@pytest.mark.parametrize("value", [["a", "it's"], [], {"role": "user", "n": [1, None, True]}])
def test_lists_are_read_as_json_and_as_python_writes_them(value: object) -> None:
    assert read_json(json.dumps(value)) == read_json(f" {value!r} ") == value


@pytest.mark.parametrize("cell", ["['a' 'b']", "[nan]", "['a'", "a text", "[" * 9999, "(1, 2)"])
def test_what_is_no_list_is_none(cell: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        read_json(cell)


def test_columns_are_found_however_late_and_long_the_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = [{"query": "q", "negative": ["x"] * 200}] * 60 + [{"query": "q", "document": "d"}]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    assert peek_columns(path) == ["query", "negative", "document"] == read_table(path).columns


def test_durations_do_not_stand_in_the_way(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["a"], "took": [pl.Series([1], dtype=pl.Int64).cast(pl.Duration("ms"))[0]]})
    frame.write_parquet(tmp_path / "rows.parquet")
    assert read_table(tmp_path / "rows.parquet")["text"].to_list() == ["a"]


def test_plain_text_has_a_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("One, two.\n\n  Three\tfour  \n", encoding="utf-8")
    assert read_table(path).to_dict(as_series=False) == {"text": ["One, two.", "Three\tfour"]}


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "tweets.csv").touch()
    assert refusal(tmp_path / "tweet.csv").endswith(f"there is no such file; did you mean {tmp_path / 'tweets.csv'}?")
    assert "nor is there a folder" in refusal(tmp_path / "nowhere" / "rows.csv")
    assert "it is a folder; name a file in it" in refusal(_folder(tmp_path / "folder.csv"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_unknown_kinds_list_the_known(tmp_path: Path) -> None:
    message = refusal(tmp_path / "rows.xlsx", b"PK")
    assert '".xlsx"' in message
    assert ".csv, .tsv, .jsonl, .ndjson, .json, .parquet" in message


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_empty_files_are_refused(tmp_path: Path, name: str) -> None:
    assert "the file is empty" in refusal(tmp_path / name, b"\n \n")


def test_tables_without_rows_are_refused(tmp_path: Path) -> None:
    assert "there are no rows" in refusal(tmp_path / "rows.csv", b"text,label\n")


def test_malformed_csv_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert "line 3 has 3 cells, but the header has 2" in refusal(path, b"text,label\nx,a\ny,z,b\n")
    assert "line 5 has 1 cells" in refusal(path, b'text,label\n"x\n\ny",a\nz\n')
    assert "starts on line 3 is malformed" in refusal(path, b'text,label\nx,a\n"never closed,b\nmore,c\n')
    assert '2 columns are called "text"' in refusal(path, b"text,label,text\nx,a,y\n")


def test_malformed_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert "line 3 is not JSON" in refusal(path, b'{"text": "x"}\n\n{"text": \n')
    assert "line 2 is no JSON object: [1]" in refusal(path, b'{"text": "x"}\n[1]\n')
    assert "item 2 is no JSON object: 7" in refusal(path, b'[{"text": "x"}, 7]')
    assert "its array is not JSON (line 2, " in refusal(path, b'[{"text": "x"},\n{"text"}]')
    assert 'it is one JSON object, with "rows", not one a row' in refusal(path, b'{\n "rows": [{"text": "x"}]\n}')
    assert "line 1 is not JSON" in refusal(path, b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")


def test_parquet_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame(ROWS).write_parquet(path)
    assert "it is no complete Parquet file" in refusal(path, path.read_bytes()[:-20])


FRENCH = "text,label\nok,a\nl’été à la plage – déjà vu,b\n"
CHINESE = "text,label\n这部电影非常好看，我很喜欢,a\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(FRENCH, "cp1252"), (FRENCH, "mac_roman"), (CHINESE, "gb18030"), (FRENCH, "utf-16"), (CHINESE, "utf-8")],
)
def test_encodings_are_guessed(text: str, encoding: str) -> None:
    assert guess_encoding(text.encode(encoding)) == encoding


def test_wrong_encodings_name_the_byte_and_a_better_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    message = refusal(path, FRENCH.encode("cp1252"))
    assert "line 3 is not utf-8 (byte 0x92, 17 from the start)" in message
    assert "give --encoding cp1252, or save" in message
    with pytest.raises(InputError, match=r"give --set stages\.1\.data\.encoding=cp1252, or save"):
        prepare(labelled(path, place="stages.1.data"))
    assert read_table(path, "cp1252")["text"][1] == "l’été à la plage – déjà vu"
    assert 'no encoding "utf9"' in refusal(path, encoding="utf9")


def test_missing_columns_name_the_nearest_and_all() -> None:
    table = pl.DataFrame({"Text": ["x"], "sentiment": ["a"]})
    with pytest.raises(InputError) as caught:
        require_columns(table, "tweets.csv", ["text"])
    assert str(caught.value) == (
        'tweets.csv: there is no column "text"; did you mean "Text"? the columns are: "Text", "sentiment"'
    )


def test_blanks_around_column_names_go(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{" text ": "x", "label": 1}\n')
    assert read_table(path).columns == ["text", "label"]
    table = pl.DataFrame({" text": ["x"], "label ": [1]})
    table.write_parquet(tmp_path / "rows.parquet")
    assert read_table(tmp_path / "rows.parquet").columns == parse_table(table).columns == ["text", "label"]
    with pytest.raises(InputError, match='2 columns are called "text"'):
        parse_table(table.rename({"label ": "text"}))


def test_pandas_gives_missing_cells_and_written_alike() -> None:
    frame = pd.DataFrame(
        {
            "text": ["x", np.nan, None],
            "kind": pd.Categorical(["a", None, "b"]),
            "number": pd.array([1, pd.NA, 3], dtype="Int64"),
            "float": [1.0, np.nan, 2.5],
            "when": [pd.NaT, "now", True],
            7: [np.float32(1), np.bool_(True), np.nan],
        }
    )
    assert parse_table(frame).to_dict(as_series=False) == {
        "text": ["x", None, None],
        "kind": ["a", None, "b"],
        "number": ["1", None, "3"],
        "float": ["1", None, "2.5"],
        "when": [None, "now", "true"],
        "7": ["1", "true", None],
    }
    with pytest.raises(InputError, match='2 columns are called "text"'):
        parse_table(frame.iloc[:, [0, 0]])


def test_dicts_and_lists_are_read_as_json_lines_are() -> None:
    records = [{"text": "x", "label": 1}] * 150 + [{"text": "y", "label": "one", "late": [1]}]
    table = parse_table(records)
    assert table.row(150) == ("y", "one", "[1]")
    assert table.equals(parse_table(iter(records)))
    assert parse_table({"text": ("x", "y"), "label": np.array([1, 2])}).rows() == [("x", "1"), ("y", "2")]


@pytest.mark.parametrize("data", [3, object(), [1, 2], [{"text": "x"}, "y"], {"text": "x"}, {"a": [1], "b": [1, 2]}])
def test_what_is_no_table_is_refused_in_one_line(data: object) -> None:
    with pytest.raises(InputError) as caught:
        parse_table(data)
    assert "\n" not in str(caught.value)


def test_labels_of_many_digits_are_sorted() -> None:
    long = "9" * 5000
    assert sort_naturally([long, "10", "2", "a10", "a9", "007"]) == ["2", "007", "10", long, "a9", "a10"]


def test_stray_marks_in_tsv_hold_no_rows_together(tmp_path: Path) -> None:
    rows = [f"text {n}\tlabel" for n in range(6)]
    rows[1], rows[4] = '"' + rows[1], rows[4] + '"'
    (tmp_path / "stray.tsv").write_text("\n".join(["text\tlabel", *rows]))
    assert read_table(tmp_path / "stray.tsv").height == 6
    (tmp_path / "meant.tsv").write_text('text\tlabel\n"two\nlines"\tone\nother\ttwo\n')
    assert read_table(tmp_path / "meant.tsv")["text"].to_list() == ["two\nlines", "other"]
