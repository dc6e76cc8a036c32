"""Conversations as token ids, with a mark on what the assistant says: its words and the token that ends its turn."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alloytune.data.cells import as_string, read_json
from alloytune.tasks.marked import Marked, Span, mark

Message = dict[str, str]  # role and content; weight "0" where it is not to be learned

ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "developer": "system",
}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

# For models that have no template of their own: no new tokens, and words that any tokenizer has.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)


class UnfitChatError(ValueError):
    """A conversation that nothing can be learned from; the text says why."""


def read_messages(cell: str) -> list[Message]:
    """Read a conversation from JSON: a list of {role, content}, or of {from, value} as ShareGPT writes them.

    Content in parts of text is joined; a turn of the assistant that calls tools may have none, and is empty.
    Raises UnfitChatError where it is no such list.
    """
    try:
        given = read_json(cell)
    except ValueError as error:
        raise UnfitChatError("the messages are not JSON") from error
    if not isinstance(given, list) or not given:
        raise UnfitChatError("the messages are no list")
    return [_read_message(message) for message in given]


def instruction_messages(instruction: str, given: str | None = None, system: str | None = None) -> list[Message]:
    """Make a conversation of an instruction, what it is about and what is said before it; both may be empty."""
    asked = {"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}
    return [{"role": "system", "content": system}, asked] if system else [asked]


def is_learned(message: Message) -> bool:
    """Tell whether a turn is the assistant's, says something, and is not weighed with 0."""
    return message["role"] == "assistant" and bool(message["content"].strip()) and message.get("weight") != "0"


def require_answer(messages: Sequence[Message]) -> None:
    """Raise UnfitChatError where the assistant says nothing that is learned."""
    if not any(map(is_learned, messages)):
        raise UnfitChatError("no assistant turn")


def give_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer that has no chat template the plain one; it is saved with the model."""
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = PLAIN_TEMPLATE


def has_own_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell a chat template that came with the model from the plain one, and from none."""
    return getattr(tokenizer, "chat_template", None) not in (None, "", PLAIN_TEMPLATE)


def render_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """Write a conversation down to where the assistant is to answer."""
    return _render(messages, tokenizer, prompt=True)


def split_last_answer(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Give what stands before the assistant's last turn that is learned, and what it says there.

    Raises UnfitChatError where there is none.
    """
    require_answer(messages)
    places = [n for n, message in enumerate(messages) if is_learned(message)]
    return list(messages[: places[-1]]), messages[places[-1]]["content"]


def mark_answers(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Marked:
    """Tokenize a conversation by the tokenizer's template and mark what the assistant says, in turns that are learned.

    Where the template marks it itself ({% generation %}), that is taken. Else the conversation is written down to
    each of the assistant's turns, and the turn is what the whole has beyond that: up to and with the special token that
    ends it. Raises UnfitChatError where the template refuses the conversation or writes its beginning otherwise when
    more follows.
    """
    require_answer(messages)
    if _GENERATION.search(str(tokenizer.chat_template)):
        return _marked_by_template(messages, tokenizer)
    whole = _render(messages, tokenizer, prompt=False)
    spans = [
        _find_turn(messages, place, whole, tokenizer) for place, message in enumerate(messages) if is_learned(message)
    ]
    return mark(whole, spans, tokenizer, special=False)


def _read_message(message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise UnfitChatError("a message is no mapping of role and content")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    name = str(role).strip().lower()
    name = _OTHER_NAMES.get(name, name)
    if name not in ROLES:
        raise UnfitChatError(f"a message is of nobody known: role {role!r}")
    calls = name == "assistant" and bool(message.get("tool_calls") or message.get("function_call"))
    read = {"role": name, "content": "" if content is None and calls else _read_content(content, name)}
    weight = as_string(message.get("weight"))
    if weight not in (None, "0", "1"):
        raise UnfitChatError(f"a message has the weight {weight}; it is learned (1) or not (0)")
    return {**read, "weight": "0"} if weight == "0" else read


def _read_content(content: Any, role: str) -> str:
    """Read a text, or parts of text as one."""
    parts = content if isinstance(content, list) else [content]
    given = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else part for part in parts]
    texts = [text for text in given if isinstance(text, str)]
    if not texts or len(texts) < len(parts):
        raise UnfitChatError(f"a message of the {role} holds no text")
    return "".join(texts)


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    except TemplateError as error:
        raise UnfitChatError(f"the chat template refuses it: {error}") from error
    return str(text)


def _find_turn(messages: Sequence[Message], place: int, whole: str, tokenizer: PreTrainedTokenizerBase) -> Span:
    """Give the span of one of the assistant's turns in the whole conversation, its end token included."""
    before = _render_before(messages, place, whole, tokenizer)
    through = _render(messages[: place + 1], tokenizer, prompt=False)
    if not whole.startswith(through) or len(through) < len(before):
        content = messages[place]["content"].strip()
        at = whole.find(content, len(before))
        if at < 0:
            raise UnfitChatError("the chat template leaves out what the assistant says")
        through = whole[: at + len(content)] + _first_special(whole[at + len(content) :], tokenizer)
    return len(before), _turn_end(through, len(before), tokenizer)


def _render_before(messages: Sequence[Message], place: int, whole: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the beginning of the whole conversation down to where the assistant says what stands at a place.

    Templates may have it begin in a way that they leave out once it has spoken, as with a thought.
    """
    if not place:  # no template writes down nothing
        return whole[: max(whole.find(messages[0]["content"].strip()), 0)]
    before = _render(messages[:place], tokenizer, prompt=True)
    alike = (n for n, (one, two) in enumerate(zip(before, whole, strict=False)) if one != two)
    shared = before[: next(alike, min(len(before), len(whole)))]
    if len(shared) < len(before) and not shared.startswith(_render(messages[:place], tokenizer, prompt=False)):
        raise UnfitChatError("the chat template writes the beginning otherwise when more follows")
    return shared


def _turn_end(through: str, start: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Leave off the white space that templates write behind the token that ends a turn."""
    stripped = through.rstrip()
    ends_special = any(stripped.endswith(token) for token in _special_tokens(tokenizer))
    return len(stripped) if ends_special and len(stripped) > start else len(through)


def _first_special(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the beginning of a text up to and with the first special token; nothing where there is none."""
    ends = [text.find(token) + len(token) for token in _special_tokens(tokenizer) if token in text]
    return text[: min(ends)] if ends else ""


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def _marked_by_template(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Marked:
    try:
        found = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except TemplateError as error:
        raise UnfitChatError(f"the chat template refuses it: {error}") from error
    marked = [bool(marked) for marked in found["assistant_masks"]]
    return Marked(list(found["input_ids"]), _without_unlearned(messages, marked))


def _without_unlearned(messages: Sequence[Message], marked: Sequence[bool]) -> list[bool]:
    """Take the mark off the turns that are not learned, where the template marks each turn once."""
    turns = [is_learned(message) for message in messages if message["role"] == "assistant"]
    if all(turns):
        return list(marked)
    run_of = list(accumulate(is_marked and not before for before, is_marked in pairwise([False, *marked])))
    if max(run_of) != len(turns):
        raise UnfitChatError("a turn of the assistant is not learned, and the chat template does not tell which it is")
    return [is_marked and turns[run - 1] for is_marked, run in zip(marked, run_of, strict=True)]
