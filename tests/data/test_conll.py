"""CoNLL-style files."""

import json
from pathlib import Path

import pytest

from alloytune.data.read import read_table
from alloytune.errors import InputError

TEXT = """-DOCSTART- -X- O

# id = 7
EU\tNNP\tB-ORG
rejects\tVBZ\tO

# O
1 O
"""


def test_sentences_are_rows(tmp_path: Path) -> None:
    file = tmp_path / "train.conll"
    file.write_text(TEXT, encoding="utf-8")
    table = read_table(file)
    assert [json.loads(cell) for cell in table["tokens"]] == [["EU", "rejects"], ["#", "1"]]
    assert [json.loads(cell) for cell in table["tags"]] == [["B-ORG", "O"], ["O", "O"]]


def test_blanks_and_breaks_of_other_writings_are_tokens(tmp_path: Path) -> None:
    file = tmp_path / "train.conll"
    file.write_text("我\tO\n\u3000\tO\n\r\na\x85b O\r\n\u2028\tB-X\n", encoding="utf-8", newline="")
    table = read_table(file)
    assert [json.loads(cell) for cell in table["tokens"]] == [["我", "\u3000"], ["a\x85b", "\u2028"]]
    assert [json.loads(cell) for cell in table["tags"]] == [["O", "O"], ["O", "B-X"]]


def test_what_has_no_tag_is_read_to_be_tagged(tmp_path: Path) -> None:
    file = tmp_path / "new.conll"
    file.write_text("EU\nrejects\n\nit\n", encoding="utf-8")
    assert read_table(file).to_dict(as_series=False) == {"tokens": ['["EU", "rejects"]', '["it"]']}


@pytest.mark.parametrize(
    ("text", "message"),
    [("EU B-ORG\nrejects\n", "line 2 has no tag: 'rejects'"), ("\n\n# nothing\n", "there are no rows")],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "train.bio"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_table(file)
