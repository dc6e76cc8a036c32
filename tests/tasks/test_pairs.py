"""Pairs of answers as people write them: beside their prompt, or at the end of whole conversations."""

import json
from typing import Any

import polars as pl
import pytest

from alloytune.data.prepare import prepare
from alloytune.data.settings import DataSettings
from alloytune.tasks.pairs import read_answer, sift_pairs
from alloytune.tasks.preference import Preference

ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
GOOD, BAD = ({"role": "assistant", "content": content} for content in ("Me.", "You."))


def sift(prompt: Any, chosen: Any, rejected: Any) -> dict[str, str] | str:
    """Give the one row, or why it is dropped."""
    cells = [cell if isinstance(cell, str) else json.dumps(cell) for cell in (prompt, chosen, rejected)]
    table = pl.DataFrame(
        [["a"], ["train"], *([cell] for cell in cells)], ["row", "split", "prompt", "chosen", "rejected"]
    )
    kept, dropped = sift_pairs(table)
    return dropped[0].detail if dropped else kept.select("prompt", "chosen", "rejected").to_dicts()[0]


@pytest.mark.parametrize("prompt", ["Who?", " Who?\n", ASKED, ASKED[:1], None])
def test_whole_conversations_are_parted_where_they_differ(prompt: Any) -> None:
    chosen = [*ASKED, GOOD]
    row = sift(chosen if prompt is None else prompt, chosen, [*ASKED, BAD])
    assert isinstance(row, dict)
    assert json.loads(row["prompt"]) == ASKED
    assert (read_answer(row["chosen"]), read_answer(row["rejected"])) == ("Me.", "You.")


def test_conversations_as_text_are_parted_behind_the_last_call() -> None:
    before = "\n\nHuman: Who?\n\nAssistant: Ann.\n\nHuman: And?\n\nAssistant:"
    whole = f"{before} Bob."
    parted = {"prompt": before, "chosen": " Bob.", "rejected": " No."}
    assert sift(whole, whole, f"{before} No.") == parted
    assert sift(before, whole, f"{before} No.") == parted


def test_answers_beside_their_prompt_stay_as_they_are() -> None:
    assert sift("Who?", " me", "you ") == {"prompt": "Who?", "chosen": " me", "rejected": "you "}
    row = sift(ASKED, [GOOD], BAD)
    assert row == {"prompt": json.dumps(ASKED), "chosen": json.dumps([GOOD]), "rejected": json.dumps(BAD)}


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "why"),
    [
        ("Where?", [*ASKED, GOOD], [*ASKED, BAD], "do not begin with the prompt"),
        (ASKED[1:], [*ASKED, GOOD], [*ASKED, BAD], "do not begin with the prompt"),
        ("Who?", [*ASKED, GOOD], [*ASKED, BAD, *ASKED, BAD], "not the same up to their last"),
        ("Who?", [*ASKED, GOOD], [*ASKED, GOOD], "the same"),
        ("Who?", [*ASKED, GOOD], [BAD], "no single turn"),
        ("Who?", [*ASKED, ASKED[1]], [*ASKED, BAD], "no single turn"),
        ("me", "me", "you", "there is no prompt"),
        ("Human: a\n\nAssistant: b", "Human: a\n\nAssistant: b", "\n\nAssistant: c", "there is no prompt"),
    ],
)
def test_other_conversations_are_dropped_with_the_reason(prompt: Any, chosen: Any, rejected: Any, why: str) -> None:
    found = sift(prompt, chosen, rejected)
    assert isinstance(found, str)
    assert why in found


def test_a_table_of_whole_conversations_needs_no_prompt() -> None:
    talks = [[{"role": "user", "content": f"Who is number {n}, {n * 7}?"}] for n in range(40)]
    cells = {
        side: [json.dumps([*talk, answer]) for talk in talks] for side, answer in (("better", GOOD), ("worse", BAD))
    }
    columns = {"prompt": "prompt", "chosen": "better", "rejected": "worse"}
    settings = DataSettings(None, columns=columns, rules=Preference.rules({}, columns), near_duplicates=False)
    rows = prepare(settings, pl.DataFrame(cells)).train
    assert set(rows["prompt"]) <= {json.dumps(talk) for talk in talks}
    assert set(rows["chosen"]) == {json.dumps(GOOD)}
