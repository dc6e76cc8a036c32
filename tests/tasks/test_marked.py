"""Tokens that are learned, and what a limit takes."""

import pytest

import tiny
from alloytune.tasks.marked import Marked, cut, cut_right, last_answer, mark_after, prompt_ids
from templates import tokenizer_of_bytes

NO, YES = False, True


def marked(learned: str) -> Marked:
    """Make tokens 10, 11 and so on; `x` where they are learned, `b` for the beginning token."""
    ids = [tokenizer.bos_token_id if sign == "b" else 1 + n for n, sign in enumerate(learned)]
    return Marked(ids, [sign == "x" for sign in learned])


tokenizer = tokenizer_of_bytes(None)


def test_an_answer_stands_behind_its_prompt_with_an_end_token() -> None:
    words = tiny.make_tokenizer()
    found = mark_after("the film was", " good", words)
    assert words.convert_ids_to_tokens(found.ids) == ["[CLS]", "the", "film", "was", "good", "[SEP]"]
    assert found.learned == [NO, NO, NO, NO, YES, YES]
    assert found.ids[:4] == prompt_ids("the film was", words)


@pytest.mark.parametrize(("prompt", "answer"), [("the film was 5", "good"), ("the film ", "was good"), ("a", "meal")])
def test_no_token_reaches_from_the_prompt_into_the_answer(prompt: str, answer: str) -> None:
    words = tiny.make_tokenizer()
    found = mark_after(prompt, answer, words)
    before, own = prompt_ids(prompt, words), words(answer, add_special_tokens=False)["input_ids"]
    assert found.ids == [*before, *own, words.eos_token_id]
    assert found.learned == [NO] * len(before) + [YES] * (len(own) + 1)


def test_no_token_reaches_across_where_blanks_belong_to_words() -> None:
    sample = tokenizer_of_bytes(None, sample="Answer: yes")
    found = mark_after("Answer: ", "yes", sample)
    assert found.ids[:-4] == prompt_ids("Answer: ", sample)
    assert found.num_learned == len("yes") + 1


def test_a_limit_takes_the_left_of_the_prompt() -> None:
    found = cut(marked("....xx"), 4, tokenizer)
    assert found.is_cut
    assert found.marked == Marked([3, 4, 5, 6], [NO, NO, YES, YES])


def test_the_beginning_token_stays() -> None:
    found = cut(marked("b...xx"), 4, tokenizer)
    assert found.marked == Marked([tokenizer.bos_token_id, 4, 5, 6], [NO, NO, YES, YES])
    assert cut(marked("b...xx"), 3, tokenizer).marked == Marked([tokenizer.bos_token_id, 5, 6], [NO, YES, YES])


def test_an_answer_longer_than_the_limit_is_left_out() -> None:
    assert cut(marked("...xxx"), 3, tokenizer).reason == "answer longer than the limit"
    assert cut(marked("b..xxx"), 3, tokenizer).reason == "answer longer than the limit"
    assert cut(marked("...xxx"), 4, tokenizer).marked == Marked([3, 4, 5, 6], [NO, YES, YES, YES])


def test_earlier_answers_may_be_cut_and_the_last_may_not() -> None:
    found = cut(marked(".xx.xx"), 4, tokenizer).marked
    assert found == Marked([3, 4, 5, 6], [YES, NO, YES, YES])
    assert found.num_learned == 2, "the first token has nothing before it that would predict it"
    assert last_answer(found) == 2


def test_what_has_nothing_to_learn_is_left_out() -> None:
    assert cut(marked("...."), 9, tokenizer).reason == "nothing to learn in it"
    assert cut_right(marked("x"), 9).reason == "nothing to learn in it"


def test_plain_text_loses_its_end() -> None:
    found = cut_right(marked("xxxx"), 3)
    assert found.is_cut
    assert found.marked == Marked([1, 2, 3], [YES] * 3)
