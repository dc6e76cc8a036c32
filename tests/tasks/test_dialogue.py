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
    parts = [{"role": "User", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}, plain[1]]
    for written in (told, plain, parts):
        assert read_messages(json.dumps(written)) == plain


@pytest.mark.parametrize("template", [CHATML, LLAMA], ids=["chatml", "llama"])
def test_of_a_talk_that_the_assistant_begins_its_words_alone_are_learned(template: str) -> None:
    end = "<|im_end|>" if template == CHATML else "<|eot_id|>"
    found = learned_parts([TALK[1], *TALK], tokenizer_of_bytes(template))
    assert found == [f"{TURNS[1]}{end}", f"{TURNS[1]}{end}", f"{TURNS[3]}{end}"]


def test_a_template_may_begin_a_thought_that_it_then_leaves_out() -> None:
    opening = CHATML.replace("<|im_start|>assistant\n'", "<|im_start|>assistant\n<think>\n'")
    assert opening != CHATML
    tokenizer = tokenizer_of_bytes(opening)
    assert render_prompt(TALK[:1], tokenizer).endswith("<think>\n")
    assert learned_parts(TALK, tokenizer) == [f"{TURNS[1]}<|im_end|>", f"{TURNS[3]}<|im_end|>"]


def test_turns_are_of_whom_their_other_names_say() -> None:
    names = ("developer", "HUMAN", "function_call", "observation", "gpt", "Function", "tool")
    found = read_messages(json.dumps([{"from": name, "value": "x"} for name in names]))
    assert [message["role"] for message in found] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "tool",
    ]


def test_a_turn_that_only_calls_tools_is_empty_and_not_learned() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    talk = read_messages(json.dumps([TALK[0], call, {"role": "tool", "content": "4"}, TALK[1]]))
    assert talk[1] == {"role": "assistant", "content": ""}
    assert learned_parts(talk, tokenizer_of_bytes(CHATML)) == [TURNS[1] + "<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, MISTRAL, MARKED], ids=["chatml", "mistral", "marked"])
@pytest.mark.parametrize("change", [{"weight": 0}, {"content": " "}])
def test_turns_that_are_empty_or_weigh_nothing_are_not_learned(template: str, change: dict[str, Any]) -> None:
    tokenizer = tokenizer_of_bytes(template)
    whole = learned_parts(TALK, tokenizer)
    for place in (0, 1):
        cell = json.dumps([{**message, **change} if n == 1 + 2 * place else message for n, message in enumerate(TALK)])
        assert learned_parts(read_messages(cell), tokenizer) == [whole[1 - place]]


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("hello", "not JSON"),
        ("[]", "no list"),
        ('{"role": "user"}', "no list"),
        ('["hello"]', "no mapping"),
        ('[{"role": "narrator", "content": "x"}]', "'narrator'"),
        ('[{"role": "user", "content": null}]', "no text"),
        ('[{"role": "assistant", "content": null}]', "no text"),
        ('[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]', "no text"),
        ('[{"role": "assistant", "content": "x", "weight": 0.5}]', "the weight 0.5"),
    ],
)
def test_a_cell_that_holds_no_conversation_is_refused(cell: str, why: str) -> None:
    with pytest.raises(UnfitChatError, match=why):
        read_messages(cell)


def test_an_instruction_becomes_a_question() -> None:
    assert instruction_messages("Sum up.", "A text.", "Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Sum up.\n\nA text."},
    ]
    assert instruction_messages("Sing.", "", None) == [{"role": "user", "content": "Sing."}]
