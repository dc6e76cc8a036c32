"""What the assistant says is learned, token by token, under templates as they were published."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from alloytune.tasks.dialogue import (
    PLAIN_TEMPLATE,
    Message,
    UnfitChatError,
    give_template,
    instruction_messages,
    mark_answers,
    read_messages,
    render_prompt,
    split_last_answer,
)
from templates import CHATML, GEMMA, LLAMA, MARKED, MISTRAL, MOVING, THINKING, tokenizer_of_bytes

TURNS = ("Who was it?\n", "It was me,\nin the  garden.", "Why? 为什么", "Because.")
TALK: list[Message] = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(TURNS)]


def learned_parts(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Give the text of every run of tokens that carry loss."""
    marked = mark_answers(messages, tokenizer)
    whole = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True)["input_ids"]
    assert marked.ids == whole
    runs: list[list[int]] = []
    for place, (token, learned) in enumerate(zip(marked.ids, marked.learned, strict=True)):
        if learned and (place == 0 or not marked.learned[place - 1]):
            runs.append([])
        if learned:
            runs[-1].append(token)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA, "<|eot_id|>"),
        (GEMMA, "<end_of_turn>"),
        (MISTRAL, "</s>"),
        (MARKED, "<|im_end|>"),
    ],
    ids=["chatml", "llama", "gemma", "mistral", "marked"],
)
def test_answers_are_learned_with_their_end_and_nothing_else(template: str, end: str) -> None:
    tokenizer = tokenizer_of_bytes(template)
    assert learned_parts(TALK, tokenizer) == [TURNS[1] + end, TURNS[3] + end]


def test_answers_are_learned_where_blanks_are_marked() -> None:
    tokenizer = tokenizer_of_bytes(MISTRAL, sample="".join(TURNS))
    assert learned_parts(TALK, tokenizer) == [f"{TURNS[1]}</s>", f"{TURNS[3]}</s>"]


def test_a_model_without_a_template_gets_a_plain_one() -> None:
    tokenizer = tokenizer_of_bytes(None)
    give_template(tokenizer)
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    assert learned_parts(TALK, tokenizer) == [f"{TURNS[1]}</s>", f"{TURNS[3]}</s>"]
    assert render_prompt(TALK[:1], tokenizer) == "<s>### User:\nWho was it?\n\n\n### Assistant:\n"


def test_a_turn_written_otherwise_when_more_follows_is_still_found() -> None:
    tokenizer = tokenizer_of_bytes(THINKING)
    assert learned_parts(TALK, tokenizer) == [f"{TURNS[1]}<|im_end|>", f"<think>\n\n</think>\n\n{TURNS[3]}<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, LLAMA, GEMMA, MISTRAL], ids=["chatml", "llama", "gemma", "mistral"])
def test_the_prompt_is_what_stands_before_what_is_learned(template: str) -> None:
    tokenizer = tokenizer_of_bytes(template)
    before, answer = split_last_answer(TALK)
    marked = mark_answers(TALK, tokenizer)
    prompt = tokenizer(render_prompt(before, tokenizer), add_special_tokens=False)["input_ids"]
    assert marked.ids[: len(prompt)] == prompt
    assert marked.learned[len(prompt)]
    assert answer == TURNS[3]


@pytest.mark.parametrize(
    ("template", "messages", "why"),
    [
        (CHATML, TALK[:1], "no assistant turn"),
        (CHATML, [*TALK[:1], {"role": "assistant", "content": " "}], "no assistant turn"),
        (GEMMA, [{"role": "system", "content": "Be kind."}, *TALK], "refuses it: System role not supported"),
        (GEMMA, TALK[1:], "must alternate"),
        (MOVING, TALK, "otherwise when more follows"),
    ],
)
def test_an_unfit_conversation_is_refused_with_the_reason(template: str, messages: list[Message], why: str) -> None:
    with pytest.raises(UnfitChatError, match=why):
        mark_answers(messages, tokenizer_of_bytes(template))


def test_messages_are_read_as_either_format_writes_them() -> None:
    told = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    plain = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert read_messages(json.dumps(told)) == read_messages(json.dumps(plain)) == plain


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("hello", "not JSON"),
        ("[]", "no list"),
        ('{"role": "user"}', "no list"),
        ('["hello"]', "no mapping"),
        ('[{"role": "narrator", "content": "x"}]', "'narrator'"),
        ('[{"role": "user", "content": null}]', "no text"),
    ],
)
def test_a_cell_that_holds_no_conversation_is_refused(cell: str, why: str) -> None:
    with pytest.raises(UnfitChatError, match=why):
        read_messages(cell)


def test_an_instruction_becomes_a_question_and_an_answer() -> None:
    assert instruction_messages("Sum up.", "A text.", "Short.") == [
        {"role": "user", "content": "Sum up.\n\nA text."},
        {"role": "assistant", "content": "Short."},
    ]
    assert instruction_messages("Sing.", "", None) == [{"role": "user", "content": "Sing."}]


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "function_call", "value": "yes"},
        {"role": "Assistant", "content": [{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]},
        {"role": "MODEL", "content": ["yes"]},
    ],
)
def test_turns_of_other_formats_mean_the_same(turn: dict[str, Any]) -> None:
    given = [{"role": "developer", "content": "Be brief."}, {"from": "Human", "value": "Is it?"}, turn]
    told = [("system", "Be brief."), ("user", "Is it?"), ("assistant", "yes")]
    read = read_messages(json.dumps(given))
    assert read == [{"role": role, "content": content} for role, content in told]


@pytest.mark.parametrize("content", [None, [], 3, [{"type": "image_url", "image_url": {}}]])
def test_what_is_no_text_is_told(content: Any) -> None:
    with pytest.raises(UnfitChatError, match="a message of the user holds no text"):
        read_messages(json.dumps([{"role": "user", "content": content}]))


def test_a_turn_that_says_nothing_is_not_learned() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
    given = [*TALK[:1], call, {"role": "tool", "content": "found"}, TALK[1], TALK[2], {**TALK[3], "content": " "}]
    talk, tokenizer = read_messages(json.dumps(given)), tokenizer_of_bytes(CHATML)
    assert learned_parts(talk, tokenizer) == [f"{TURNS[1]}<|im_end|>"]
    assert split_last_answer(talk) == (talk[:3], TURNS[1])
