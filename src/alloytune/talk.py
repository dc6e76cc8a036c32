"""A quick look at a model that writes: answers to single prompts, and a conversation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from alloytune.build.session import fit
from alloytune.errors import InputError
from alloytune.machine import find_machine
from alloytune.models.load import load_model, load_tokenizer, token_limit
from alloytune.models.source import locate
from alloytune.tasks.answering import model_room, write_answers
from alloytune.tasks.asked import Asked, Form, ask, form_of
from alloytune.tasks.dialogue import Message, give_template
from alloytune.tasks.replies import tokenize_reply, tokenize_sides
from alloytune.tasks.task import find_task
from alloytune.tasks.writing import Writing
from alloytune.use import load_tuned

_COLUMN: dict[Form, str] = {
    "instruction": "instruction",
    "completion": "prompt",
    "source": "source",
    "messages": "instruction",
    "text": "prompt",
}


@dataclass
class Writer:
    """A model that writes. `form` is how its examples were written, `prompt` what is asked of a source text."""

    model: Any
    tokenizer: Any
    form: Form
    prompt: str = "{source}"
    max_new_tokens: int = 256
    temperature: float = 0.0
    said: list[Message] = field(default_factory=list)

    def answer(self, texts: Sequence[str]) -> list[str]:
        """Answer prompts, each for itself, as the examples of training were asked."""
        column = _COLUMN[self.form]
        form = form_of((column,))
        asked = [ask({column: text}, form, self.prompt) for text in texts]
        return self._write(asked)

    def reply(self, text: str, show: bool = False) -> str:
        """Answer with all that was said before in mind; `show` prints words as they are written.

        The oldest turns are forgotten when the model has no room for them.
        """
        self.said.append({"role": "user", "content": text})
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if show else None
        try:
            (answer,) = self._write([Asked(tuple(self.said))], streamer)
        except InputError:
            self.said.pop()
            raise
        self.said.append({"role": "assistant", "content": answer})
        return answer

    def _write(self, asked: Sequence[Asked], streamer: Any = None) -> list[str]:
        is_two_sided = self.model.config.is_encoder_decoder
        room = model_room(self.model, self.tokenizer)
        limit = room if room is None or is_two_sided else max(room - self.max_new_tokens, room // 2)
        tokenize = tokenize_sides if is_two_sided else tokenize_reply
        prompts = []
        for one in asked:
            found = tokenize("", one, self.tokenizer, limit)
            if found.example is None:
                raise InputError("prompt", found.reason, "ask in another way")
            prompts.append(found.example.target.prompt)
        return write_answers(
            *(self.model, prompts, self.tokenizer, self.max_new_tokens),
            temperature=self.temperature,
            streamer=streamer,
        )


def load_writer(place: str, *, max_new_tokens: int | None, temperature: float, seed: int) -> Writer:
    """Load what a run left, or a model as it is; raises InputError where it does not write."""
    writer = _load_writer(place, max_new_tokens, temperature)
    torch.manual_seed(seed)  # after what loading draws
    return writer


def _load_writer(place: str, max_new_tokens: int | None, temperature: float) -> Writer:
    if (Path(place) / "results.json").exists():
        tuned = load_tuned(place)
        if isinstance(tuned.task, Writing):
            form, prompt = form_of(tuned.task.columns), tuned.task.prompt or "{source}"
            limit = max_new_tokens or tuned.task.max_new_tokens
            return Writer(tuned.model, tuned.tokenizer, form, prompt, limit, temperature)
        if tuned.task.pipeline != "text-generation":
            raise InputError("run", f"its task is {tuned.recipe.task_name}, which writes no texts", "use predict")
        return _as_it_is(tuned.model, tuned.tokenizer, max_new_tokens, temperature)
    source = locate(place)
    tokenizer, task = load_tokenizer(source), fit(find_task("generation").blank(), source)
    model, fresh = load_model(task.auto_class, source, tokenizer, 0, **task.config)
    if fresh or task.config.get("is_decoder"):  # an encoder, put under a decoder's head
        raise InputError(
            "model", f"{place!r} has not learned to write", "give one that has, or a run with task: generation"
        )
    token_limit(model, tokenizer, None)
    return _as_it_is(model.to(find_machine().device), tokenizer, max_new_tokens, temperature)


def _as_it_is(model: Any, tokenizer: Any, max_new_tokens: int | None, temperature: float) -> Writer:
    """Ask a decoder as it was taught elsewhere: by its chat template, if it has one."""
    form: Form = "instruction" if getattr(tokenizer, "chat_template", None) else "text"
    return Writer(model, tokenizer, form, "{source}", max_new_tokens or 256, temperature)


def converse(writer: Writer, lines: Iterable[str], show: Callable[[], None], *, stream: bool) -> None:
    """Answer line after line; an empty line is passed over, `/new` forgets what was said, `/quit` ends.

    `show` is called before every line that is read.
    """
    if writer.model.config.is_encoder_decoder:
        raise InputError("chat", "a model that reads apart from what it writes keeps no conversation", "use generate")
    give_template(writer.tokenizer)
    show()
    for line in lines:
        match line.strip():
            case "/quit":
                return
            case "/new":
                writer.said.clear()
            case "":
                pass
            case text:
                answer = writer.reply(text, show=stream)
                if not stream:
                    print(answer)
        show()
