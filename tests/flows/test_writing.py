"""Whole commands for models that write: instructions, dialogues and translations on tiny models."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

import alloytune
import tiny
from alloytune import run
from alloytune.cli.main import console, main
from alloytune.errors import InputError, Interrupted
from alloytune.recipe.read import read_recipe, recipe_read
from alloytune.report.scores import compared_answers
from alloytune.train.loop import Step
from alloytune.use import load_tuned
from alloytune.watch import Watcher
from architectures import ARCHITECTURES

INSTRUCTIONS = """
model: {model}
task: {{generation: {{generate: 6, max_new_tokens: 5}}}}
data: {{train: table.jsonl, input: input, split: {{validation: 20%, test: 20%}}}}
seed: 5
batch: 8
micro_batch: 3
stages:
  - name: full
    train: all
    rate: 3e-2
    until: {{epochs: 5}}
  - name: adapter
    attach: {{lora: {{rank: 2, on: attention | mlp}}}}
    train: adapter | head
    rate: 3e-3
    until: {{epochs: 1}}
"""
DIALOGUES = """
model: {model}
task: {{generation: {{generate: 2, max_new_tokens: 3}}}}
data: {{train: talks.jsonl, messages: talk, split: {{validation: 20%, test: 0}}}}
seed: 5
batch: 8
micro_batch: 3
max_length: 24
checkpoint: 2 updates
stages:
  - name: full
    train: all
    rate: 1e-3
    until: {{epochs: 2}}
    evaluate: 3 updates
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_llama(tmp_path_factory.mktemp("llama"))


def write_instructions(file: Path, rows: int = 60) -> pl.DataFrame:
    """Write instructions whose answer is one of two words."""
    table = tiny.make_table(rows)
    made = pl.DataFrame(
        {"instruction": table["text"], "input": [""] * table.height, "output": "it was " + table["label"]}
    )
    made.write_ndjson(file)
    return made


def command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run `alloytune ...` in this process; give its exit code."""
    monkeypatch.setattr(sys, "argv", ["alloytune", *words])
    monkeypatch.setattr(console, "width", 160)
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_instructions_from_train_to_chat(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = write_instructions(tmp_path / "table.jsonl")
    (tmp_path / "recipe.yaml").write_text(INSTRUCTIONS.format(model=llama))
    assert command(["train", "recipe.yaml", "-o", "run"], monkeypatch) == 0, capsys.readouterr().err

    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["saved"] == ["adapter", "base", "model"]
    assert json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert all(difference < 1e-5 for difference in results["reload_difference"].values())
    test = results["test"]["values"]
    assert test["loss"] < 2 < results["start"]["values"]["loss"]
    assert test["exact_match"] > 0
    assert set(results["test"]["intervals"]) == {"loss", "perplexity", "exact_match", "chrf", "rouge_l"}
    assert len(results["test"]["details"]["answers"]) == 5

    capsys.readouterr()
    table.head(3).select("instruction", "input").write_ndjson(tmp_path / "new.jsonl")
    assert command(["predict", "run", "new.jsonl", "-o", "answers.jsonl"], monkeypatch) == 0
    answers = pl.read_ndjson(tmp_path / "answers.jsonl")["answer"]
    assert all(answer.startswith("it was") for answer in answers)
    assert command(["evaluate", "run", "table.jsonl"], monkeypatch) == 0
    assert "exact_match" in capsys.readouterr().out

    assert command(["generate", "run", *table["instruction"].head(3).to_list()], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == answers.to_list(), "as predict answers"
    drawn = []
    for seed in (1, 2, 1):
        assert command(["generate", "run", "a word", "--temperature", "9", "--seed", str(seed)], monkeypatch) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[2] != drawn[1]
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(f"{table['instruction'][0]}\n\n/new\n{table['instruction'][1]}\n/quit\n")
    )
    assert command(["chat", "run"], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == answers.head(2).to_list(), "of nothing said before"


def test_a_model_that_has_not_learned_to_write_is_refused(
    bert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["generate", str(bert), "a word"], monkeypatch) == 2
    assert "has not learned to write" in capsys.readouterr().err


class Stopping(Watcher):
    """Stops a run at an update, and in any case before it is tested and saved."""

    def __init__(self, update: int | None = None) -> None:
        self.update = update

    def on_step(self, step: Step, progress: object) -> None:
        if step.update == self.update:
            raise Interrupted("enough")

    def on_finish(self, doing: str) -> None:
        raise Interrupted("trained")


def test_dialogues_go_on_to_the_same_bytes(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = tiny.make_table(40)["text"]
    talks = [[{"role": "user", "content": text}, {"role": "assistant", "content": text.split()[0]}] for text in texts]
    talks[0] = talks[0][:1]  # no assistant turn
    talks[1][1]["content"] = "one " * 40  # longer than the limit
    talks[2] += [{"role": "user", "content": "and"}]  # ends on a question
    pl.DataFrame({"talk": talks}).write_ndjson(tmp_path / "talks.jsonl")
    (tmp_path / "recipe.yaml").write_text(DIALOGUES.format(model=llama))

    for name, update in (("alone", None), ("stopped", 3)):
        with pytest.raises(Interrupted):
            run.start(read_recipe("recipe.yaml"), tmp_path / name, Stopping(update))
    with pytest.raises(Interrupted):
        run.resume(tmp_path / "stopped", Stopping())
    alone, stopped = (
        {file.name: load_file(file) for file in (tmp_path / name / "stages").rglob("*.safetensors")}
        for name in ("alone", "stopped")
    )
    assert alone.keys() == stopped.keys()
    assert alone
    for name, tensors in alone.items():
        assert all(torch.equal(tensor, stopped[name][key]) for key, tensor in tensors.items()), name
    audit = json.loads((tmp_path / "alone/data/audit.json").read_text())
    assert audit["dropped_by_reason"] == {"no assistant turn": 1}


def test_every_conversation_is_answered_though_few_are_in_scores(tmp_path: Path, llama: Path) -> None:
    texts = tiny.make_table(30)["text"]
    talks = [[{"role": "user", "content": text}, {"role": "assistant", "content": "it was"}] for text in texts]
    pl.DataFrame({"messages": talks}).write_ndjson(tmp_path / "talks.jsonl")
    recipe = {
        "model": str(llama),
        "task": {"generation": {"generate": 1, "max_new_tokens": 2}},
        "data": {
            "train": str(tmp_path / "talks.jsonl"),
            "messages": "messages",
            "split": {"validation": "20%", "test": 0},
        },
        "stages": [{"name": "full", "train": "all", "rate": 1e-3, "until": {"updates": 1}}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    tuned = load_tuned(run.start(read_recipe(str(tmp_path / "recipe.yaml")), tmp_path / "run", Watcher()).path)
    asked = [talk[:1] for talk in talks]
    answers = tuned.predict_table({"messages": [*talks, *asked]})["answer"].to_list()
    assert answers[: len(talks)] == answers[len(talks) :], "what was said before the answer is what is asked"
    assert None not in answers
    scored = tuned.evaluate_table({"messages": talks})
    assert [shown["row"] for shown in scored["details"]["answers"]] == ["1"]
    assert compared_answers(scored) == ", 1 of them answered and compared"


def test_plain_text_has_no_two_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.make_table(30).select("text").write_csv(tmp_path / "texts.csv")
    given = {
        "model": str(save_t5(tmp_path / "t5")),
        "task": "generation",
        "data": {"train": str(tmp_path / "texts.csv"), "text": "text"},
        "stages": [{"name": "full", "train": "all", "rate": 1e-3}],
    }
    with pytest.raises(InputError, match="plain text has one side"):
        run.start(recipe_read(given), tmp_path / "run", Watcher())
    assert not (tmp_path / "run").exists()


def save_t5(folder: Path) -> Path:
    """Save a random T5 with a tokenizer of whole words."""
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(tiny.WORDS),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_with_two_sides_translates(tmp_path: Path) -> None:
    table = tiny.make_table(40)
    pairs = pl.DataFrame({"source": table["text"], "target": table["label"]})
    tuned = alloytune.tune(
        pairs,
        str(save_t5(tmp_path / "t5")),
        {
            "task": {"translation": {"generate": 4, "max_new_tokens": 4}},
            "batch": 8,
            "micro_batch": 3,
            "stages": [{"name": "full", "train": "all", "rate": 1e-2, "until": {"epochs": 3}}],
        },
        output=tmp_path / "run",
    )
    assert tuned.results["pipeline"] == "translation"
    assert tuned.results["reload_difference"]["model"] < 1e-5
    assert set(tuned.scores) == {"loss", "perplexity", "chrf", "bleu", "exact_match"}
    assert tuned.scores["loss"] < tuned.results["start"]["values"]["loss"]
    assert tuned.predict_table(pairs.head(3)).columns == ["answer"]
    assert tuned.evaluate_table(pairs.head(9))["rows"] == 9


def save_nllb(folder: Path) -> Path:
    """Save a random model of NLLB's kind; its tokenizer has a word for each language."""
    torch.manual_seed(1)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [*special, *(f"▁{word}" for word in (*tiny.GOOD, *tiny.BAD, *tiny.PLAIN))]
    letters = sorted({letter for word in words[4:] for letter in word})
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys([*special, *letters]))}
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=["eng_Latn", "deu_Latn", "<mask>"])
    tokenizer.save_pretrained(folder)
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=tiny.WIDTH,
        max_position_embeddings=64,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        **{f"{side}_{key}": 2 for side in ("encoder", "decoder") for key in ("layers", "attention_heads")},
        **{f"{side}_ffn_dim": 2 * tiny.WIDTH for side in ("encoder", "decoder")},
    )
    M2M100ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_model_of_many_languages_is_told_which(tmp_path: Path) -> None:
    source = save_nllb(tmp_path / "nllb")
    table = tiny.make_table(40)
    pairs = pl.DataFrame({"source": table["text"].str.replace_all(r" ?\d+", ""), "target": table["label"]})
    settings: dict[str, Any] = {"generate": 4, "max_new_tokens": 4, "source_language": "eng_Latn"}
    stages = [{"name": "full", "train": "all", "rate": 1e-3, "until": {"updates": 2}}]

    def tune(**more: str) -> alloytune.Tuned:
        recipe = {"task": {"translation": settings | more}, "batch": 8, "stages": stages}
        return alloytune.tune(pairs, str(source), recipe, output=tmp_path / "-".join(["run", *more.values()]))

    tuned = tune(target_language="deu_Latn")
    start, end, english, german = (
        tuned.tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "</s>", "eng_Latn", "deu_Latn")
    )
    (example,) = tuned.task.encode(pairs.head(1), tuned.tokenizer, None).examples
    assert (example.inputs["input_ids"][0], example.inputs["input_ids"][-1]) == (english, end)
    assert (example.target.targets[0], example.target.targets[-1]) == (german, end)
    assert AutoModelForSeq2SeqLM.from_pretrained(tuned.folder.model).generation_config.forced_bos_token_id == german
    written = tuned.model.generate(torch.tensor([example.inputs["input_ids"]]), max_new_tokens=3)
    assert written[0, :2].tolist() == [start, german]
    with pytest.raises(InputError, match="target_language: the model translates between many languages"):
        tune()
    with pytest.raises(InputError, match="target_language: the model knows no language 'German'"):
        tune(target_language="German")


LORA = {"attach": {"lora": {"rank": 2}}, "train": "adapter | head"}


@pytest.mark.parametrize("stage", [{"train": "all"}, pytest.param(LORA, marks=pytest.mark.slow)], ids=["all", "lora"])
def test_an_encoder_writes_without_seeing_what_comes(tmp_path: Path, bert: Path, stage: dict[str, Any]) -> None:
    """Its tokenizer has no end token, as BERT's: [SEP] becomes it."""
    source = shutil.copytree(bert, tmp_path / "bert")
    tiny.make_tokenizer(end=None).save_pretrained(source)
    rows = [{"prompt": f"a film {n}", "completion": f" good {n}"} for n in range(40)]
    recipe = {
        "task": {"generation": {"generate": 2, "max_new_tokens": 3}},
        "data": {"prompt": "prompt", "completion": "completion"},
        "batch": 8,
        "micro_batch": 4,
        "stages": [{"name": "only", "rate": 1e-3, "until": {"updates": 2}, **stage}],
    }
    tuned = alloytune.tune(rows, str(source), recipe, output=tmp_path / "run")
    assert max(tuned.results["reload_difference"].values()) < 1e-5
    assert tuned.tokenizer.eos_token == "[SEP]"
    (example,) = tuned.task.encode(pl.DataFrame(rows[:1]), tuned.tokenizer, None).examples
    assert example.target.targets[-2] == tuned.tokenizer.sep_token_id
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model").eval()
    assert plain.config.is_decoder
    assert plain.generation_config.eos_token_id == tuned.tokenizer.sep_token_id
    ids = torch.tensor([[2, 7, 20, 9], [2, 7, 20, 15]])
    with torch.inference_mode():
        logits = plain(input_ids=ids).logits
    assert torch.equal(logits[0, :3], logits[1, :3])
    assert tuned.predict_table(pl.DataFrame(rows).select("prompt"))["answer"].len() == 40


def test_an_encoder_without_a_decoder_of_its_weights_is_refused(tmp_path: Path) -> None:
    source = ARCHITECTURES["modernbert"].save(tmp_path / "own")
    recipe = {
        "task": "generation",
        "data": {"prompt": "text", "completion": "label"},
        "stages": [{"name": "full", "train": "all"}],
    }
    with pytest.raises(InputError, match="is an encoder, and transformers has no decoder for its weights"):
        alloytune.tune(tiny.make_table(40), str(source), recipe, output=tmp_path / "run")
