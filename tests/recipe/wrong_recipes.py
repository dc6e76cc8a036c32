"""Wrong recipes, one mistake each. `▲` stands before the place that the message must give; it is taken out.

A case is its text, the path in the message, and words that the message must hold.
"""

from typing import NamedTuple


class Wrong(NamedTuple):
    text: str
    path: str
    words: tuple[str, ...]


def stage(line: str, rest: str = "") -> str:
    """A recipe with one sound stage and one more line in it."""
    return f"stages:\n  - name: full\n    train: all\n    rate: 1e-4\n    {line}\n{rest}"


def top(line: str) -> str:
    """A recipe with one more line at the top."""
    return f"{line}\nstages:\n  - {{name: full, train: all, rate: 1e-4}}\n"


def after_lora(lines: str, first: str = "") -> str:
    """A recipe whose second stage follows one that attached LoRA."""
    return (
        "stages:\n"
        "  - name: lora\n"
        "    attach: {lora: {}}\n"
        "    train: adapter\n"
        "    rate: 1e-3\n"
        f"{first}"
        "  - name: next\n"
        "    rate: 1e-4\n"
        f"{lines}\n"
    )


SYNTAX = {
    "empty file": Wrong("", "", ("empty", "stages:")),
    "comment only": Wrong("# nothing\n", "", ("empty",)),
    "list at top": Wrong("▲- name: full\n", "", ("is a list", "mapping")),
    "text at top": Wrong("▲full\n", "", ("single value", "mapping")),
    "duplicate key": Wrong("seed: 1\n▲seed: 2\n", "", ("'seed' stands twice",)),
    "tab": Wrong("data:\n▲\ttrain: a.csv\n", "", ("tab", "spaces")),
    "quote not closed": Wrong('model: ▲"bert\nseed: 1\n', "", ("quote", "never closed")),
    "bracket not closed": Wrong("data: ▲{train: a.csv\n", "", ("bracket", "never closed")),
    "bracket too many": Wrong("data: {train: a.csv}▲}\n", "", ("closed that was never opened",)),
    "colon in text": Wrong("about: fast▲: and good\n", "", ("':' cannot stand here", "quotes")),
    "indentation": Wrong("data:\n  train: a.csv\n ▲text: b\n", "", ("indented",)),
    "no colon": Wrong("seed: 1\n▲model\n", "", ("no ':'", "key: value")),
    "block mark": Wrong("about: ▲| text\n", "", ("| or >", "quotes")),
    "at sign": Wrong("model: ▲@org/bert\n", "", ("cannot start with @", "quotes")),
    "star": Wrong("stages:\n  - train: ▲*.bias\n", "", ("anchor", "quotes")),
    "list in a line": Wrong("stages: ▲- name: a\n", "", ("lines of its own",)),
    "text after quote": Wrong("model: 'a' ▲b\n", "", ("after the end of a quoted",)),
    "two documents": Wrong("seed: 1\n▲---\nseed: 2\n", "", ("second document",)),
    "unknown escape": Wrong('model: "C:\\▲qwen"\n', "", ("single quotes",)),
    "control character": Wrong("model: ▲\x07\n", "", ("'\\x07'",)),
    "old YAML": Wrong("▲%YAML 1.1\n---\nseed: 1\n", "", ("YAML 1.2", "remove")),
    "tag": Wrong("model: ▲!!python/object:os.system rm\n", "", ("tag", "not allowed")),
    "unquoted layers in braces": Wrong(
        "stages:\n  - attach: {lora: {on: ▲layers[-2:] | head, rank: 4}}\n",
        "",
        ("needs quotes", '"layers[-2:] | head"'),
    ),
    "unquoted layers in a stage in braces": Wrong(
        "stages:\n  - {name: a, train: ▲layers[0] - norm, rate: 1e-4}\n",
        "",
        ("needs quotes", '"layers[0] - norm"'),
    ),
    "unquoted layers, space before bar": Wrong(
        "stages:\n  - {name: a, train: ▲layers[-2:] | head, rate: 1e-4}\n",
        "",
        ("needs quotes", '"layers[-2:] | head"'),
    ),
    "unquoted layers as a key": Wrong(stage("rates: {▲layers[-2:]: 1e-4}"), "", ("needs quotes", '"layers[-2:]"')),
}

KEYS = {
    "typo": Wrong(stage("▲schedul: linear"), "stages[0].schedul", ("'schedul'", "did you mean 'schedule'?")),
    "learning_rate": Wrong(
        "stages:\n  - name: a\n    train: all\n    ▲learning_rate: 1e-4\n",
        "stages[0].learning_rate",
        ("did you mean 'rate'?",),
    ),
    "lerning_rate": Wrong(
        "stages:\n  - name: a\n    train: all\n    ▲lerning_rate: 1e-4\n",
        "stages[0].lerning_rate",
        ("unknown key 'lerning_rate'", "did you mean 'rate'?"),
    ),
    "epochs in a stage": Wrong(stage("▲epochs: 3"), "stages[0].epochs", ("until: {epochs: ...}",)),
    "max_steps in a stage": Wrong(stage("▲max_steps: 3"), "stages[0].max_steps", ("until: {updates: ...}",)),
    "steps": Wrong(stage("until: {▲steps: 30}"), "stages[0].until.steps", ("did you mean 'updates'?",)),
    "batch_size": Wrong(top("▲batch_size: 8"), "batch_size", ("did you mean 'batch'?",)),
    "batch in a stage": Wrong(stage("▲batch: 8"), "stages[0].batch", ("belongs at the top of the recipe",)),
    "rate at the top": Wrong(top("▲rate: 1e-4"), "rate", ("'rate' belongs in a stage",)),
    "lora at stage": Wrong(stage("▲lora: {rank: 8}"), "stages[0].lora", ("attach: {lora: ...}",)),
    "r": Wrong(stage("attach: {lora: {▲r: 8}}"), "stages[0].attach.lora.r", ("did you mean 'rank'?",)),
    "target_modules": Wrong(
        stage("attach: {lora: {▲target_modules: attention}}"),
        "stages[0].attach.lora.target_modules",
        ("did you mean 'on'?",),
    ),
    "lora_alpha": Wrong(stage("attach: {lora: {▲lora_alpha: 8}}"), "stages[0].attach.lora.lora_alpha", ("'alpha'",)),
    "model_name_or_path": Wrong(top("▲model_name_or_path: bert"), "model_name_or_path", ("did you mean 'model'?",)),
    "dev": Wrong(top("data: {▲dev: a.csv}"), "data.dev", ("did you mean 'validation'?",)),
    "train at the top": Wrong(top("▲train_file: a.csv"), "train_file", ("data: {train: ...}",)),
    "freeze": Wrong(stage("▲freeze: layers"), "stages[0].freeze", ("`train` names what moves",)),
    "gradient accumulation": Wrong(
        top("▲gradient_accumulation_steps: 4"), "gradient_accumulation_steps", ("`batch`", "`micro_batch`")
    ),
    "no idea": Wrong(top("▲zebra: 1"), "zebra", ("unknown key 'zebra'", "there are about, model")),
    "number as a key": Wrong(top("▲1: 2"), "1", ("unknown key '1'",)),
    "comma in braces": Wrong(
        stage("rates: {all: 1e-4}\n    attach: {lora: {on: attention, ▲mlp]: }}").replace("]", "|"),
        'stages[0].attach.lora["mlp|"]',
        ("selection", "quotes"),
    ),
}

VALUES = {
    "rate in words": Wrong(
        "stages:\n  - name: a\n    train: all\n    rate: ▲fast\n", "stages[0].rate", ("'fast'", "number above 0")
    ),
    "rate nan": Wrong("stages:\n  - {name: a, train: all, rate: ▲.nan}\n", "stages[0].rate", (".nan", "above 0")),
    "rate zero": Wrong("stages:\n  - {name: a, train: all, rate: ▲0}\n", "stages[0].rate", ("0 is not", "above 0")),
    "rate negative": Wrong("stages:\n  - {name: a, train: all, rate: ▲-1e-4}\n", "stages[0].rate", ("-0.0001",)),
    "rate infinite": Wrong("stages:\n  - {name: a, train: all, rate: ▲1e999}\n", "stages[0].rate", (".inf",)),
    "rate quoted": Wrong(
        "stages:\n  - {name: a, train: all, rate: ▲'1e-4'}\n", "stages[0].rate", ("'1e-4'", "without quotes")
    ),
    "rate true": Wrong("stages:\n  - {name: a, train: all, rate: ▲true}\n", "stages[0].rate", ("true is not",)),
    "rates in words": Wrong(stage("rates: {head: ▲fast}"), "stages[0].rates.head", ("'fast'", "number above 0")),
    "rates of an unknown role": Wrong(stage("rates: {▲heed: 1}"), "stages[0].rates.heed", ("did you mean 'head'?",)),
    "seed negative": Wrong(top("seed: ▲-1"), "seed", ("-1", "whole number of at least 0")),
    "seed fraction": Wrong(top("seed: ▲1.5"), "seed", ("1.5", "whole number")),
    "batch float": Wrong(top("batch: ▲32.0"), "batch", ("32.0", "write 32")),
    "batch empty": Wrong(top("▲batch:"), "batch", ("an empty value", "whole number")),
    "metric": Wrong(top("metric: ▲f1"), "metric", ("'f1'", "accuracy, macro_f1", "did you mean 'macro_f1'?")),
    "precision": Wrong(top("precision: ▲bf16"), "precision", ("did you mean 'bfloat16'?",)),
    "task": Wrong(top("task: ▲regression"), "task", ("'regression'", "'classification', the only choice")),
    "label number": Wrong(top("data: {label: ▲3}"), "data.label", ("3 is not text", "quotes: '3'")),
    "model empty text": Wrong(top("model: ▲''"), "model", ("the text is empty",)),
    "data list": Wrong(top("data: ▲[a.csv]"), "data", ("mapping such as {train: ...",)),
    "repair word": Wrong(top("data: {repair: ▲no}"), "data.repair", ("'no'", "true or false", "write false")),
    "rows": Wrong(top("data: {rows: ▲3}"), "data.rows", ("3", "at least 10")),
    "share over 100%": Wrong(top("data: {split: {test: ▲120%}}"), "data.split.test", ("'120%'", "below 100%")),
    "share in words": Wrong(top("data: {split: {test: ▲half}}"), "data.split.test", ("'half'", "share")),
    "stratify number": Wrong(top("data: {split: {stratify: ▲3}}"), "data.split.stratify", ("true or false or text",)),
    "selection typo": Wrong("stages:\n  - {name: a, train: ▲heed, rate: 1}\n", "stages[0].train", ("'head'",)),
    "selection list": Wrong(
        "stages:\n  - {name: a, train: ▲[attention, mlp], rate: 1}\n", "stages[0].train", ('"attention | mlp"',)
    ),
    "selection syntax": Wrong("stages:\n  - {name: a, train: ▲all |, rate: 1}\n", "stages[0].train", ("'all |'",)),
    "selection cut at a comma": Wrong(
        'stages:\n  - {name: a, train: ▲name("a, rate: 1}\n', "stages[0].train", ("inside {...}", "quotes")
    ),
    "interval": Wrong(stage("evaluate: ▲often"), "stages[0].evaluate", ("'often'", "200 updates")),
    "interval in minutes": Wrong(stage("evaluate: ▲5 minutes"), "stages[0].evaluate", ("'5 minutes'", "1 epoch")),
    "checkpoint": Wrong(top("checkpoint: ▲seldom"), "checkpoint", ("'seldom'", "5 minutes")),
    "name": Wrong("stages:\n  - {name: ▲Full run, train: all, rate: 1}\n", "stages[0].name", ("'Full run'", "small")),
    "no train": Wrong("stages:\n  - ▲name: a\n    rate: 1\n", "stages[0].train", ("'train' is missing",)),
    "no stages": Wrong("▲model: bert\n", "stages", ("'stages' is missing", "list")),
    "stages empty": Wrong("stages: ▲[]\n", "stages", ("at least one",)),
    "stages mapping": Wrong("stages:\n  ▲full: {train: all}\n", "stages", ("list",)),
    "stage a word": Wrong("stages:\n  - ▲full\n", "stages[0]", ("'full' is not a mapping",)),
    "attach a word": Wrong(stage("attach: ▲lora"), "stages[0].attach", ("'lora'", "mapping such as {lora: ...")),
    "otherwise": Wrong(stage("accept: {gain: 0}\n    otherwise: ▲rolback"), "stages[0].otherwise", ("'rollback'?",)),
    "retry factor": Wrong(
        stage("accept: {gain: 0}\n    otherwise: {retry: {factor: ▲2}}"),
        "stages[0].otherwise.retry.factor",
        ("2 is not", "below 1"),
    ),
    "retry missing": Wrong(
        stage("accept: {gain: 0}\n    otherwise: ▲{}"), "stages[0].otherwise.retry", ("'retry' is missing",)
    ),
    "clip": Wrong(stage("clip: ▲.inf"), "stages[0].clip", (".inf", "a number above 0")),
}

RULES = {
    "same name": Wrong(
        "stages:\n  - {name: a, train: all, rate: 1}\n  - {name: ▲a, train: all, rate: 1}\n",
        "stages[1].name",
        ("'a'", "stages[0]"),
    ),
    "empty rate": Wrong("stages:\n  - name: a\n    train: all\n    ▲rate:\n", "stages[0].rate", ("empty", "'auto'")),
    "rate nearly auto": Wrong(
        "stages:\n  - {name: a, train: all, rate: ▲aut}\n", "stages[0].rate", ("'aut'", "did you mean 'auto'?")
    ),
    "adapter not attached": Wrong(
        "stages:\n  - {name: a, train: ▲adapter | head, rate: 1}\n",
        "stages[0].train",
        ("'adapter'", "none is attached", "attach: {lora"),
    ),
    "rates of an adapter not attached": Wrong(
        stage("rates: {▲adapter: 1e-3}"), "stages[0].rates.adapter", ("none is attached",)
    ),
    "adapter merged": Wrong(
        after_lora("    merge: true\n    train: ▲adapter"), "stages[1].train", ("none is attached",)
    ),
    "second adapter": Wrong(
        after_lora("    train: all\n    ▲attach: {lora: {}}"),
        "stages[1].attach",
        ("'lora' is still attached", "`merge: true`"),
    ),
    "second adapter after bottleneck": Wrong(
        after_lora("    train: all\n    ▲attach: {lora: {}}").replace(
            "attach: {lora: {}}", "attach: {bottleneck: {}}", 1
        ),
        "stages[1].attach",
        ("still attached; remove",),
    ),
    "second adapter after a merge that may not happen": Wrong(
        after_lora(
            "    train: all\n    merge: true\n    accept: {gain: 0}\n"
            "  - name: last\n    train: all\n    rate: 1e-4\n    ▲attach: {lora: {}}"
        ),
        "stages[2].attach",
        ("may still be attached", "`merge: true`"),
    ),
    "attach nothing": Wrong(stage("attach: ▲{}"), "stages[0].attach", ("names no adapter", "{lora:")),
    "attach null lora": Wrong(stage("attach: ▲{lora: }"), "stages[0].attach", ("names no adapter",)),
    "attach both": Wrong(stage("attach: ▲{lora: {}, bottleneck: {}}"), "stages[0].attach", ("at once",)),
    "adapter on adapter": Wrong(
        stage("attach: {lora: {on: ▲adapter}}"), "stages[0].attach.lora.on", ("names the adapter itself",)
    ),
    "merge nothing": Wrong(stage("merge: ▲true"), "stages[0].merge", ("nothing is attached",)),
    "merge bottleneck": Wrong(
        after_lora("    train: all\n    merge: ▲true").replace("{lora: {}}", "{bottleneck: {}}"),
        "stages[1].merge",
        ("bottleneck adapter of stage 'lora'", "cannot be merged"),
    ),
    "otherwise without accept": Wrong(
        stage("▲otherwise: rollback"), "stages[0].otherwise", ("without `accept`", "accept: {gain: 0}")
    ),
    "patience alone": Wrong(
        stage("until: ▲{patience: 2}"), "stages[0].until", ("patience alone", "{epochs: 10, patience: 2}")
    ),
    "until empty": Wrong(stage("until: ▲{}"), "stages[0].until", ("no end", "{epochs: 3}")),
    "split too large": Wrong(
        top("data: {split: ▲{validation: 60%, test: 40%}}"), "data.split", ("0.6", "0.4", "less than 100%")
    ),
    "no validation": Wrong(
        top("data: {split: {validation: ▲0}}"), "data.split.validation", ("no validation rows", "data.validation")
    ),
    "stratify by another column": Wrong(
        top("data: {label: mood, split: {stratify: ▲user}}"), "data.split.stratify", ("'user'", "'mood'")
    ),
    "text is label": Wrong(top("data: {text: a, label: ▲a}"), "data.label", ("'a'", "text column")),
    "text is text_pair": Wrong(top("data: {text: a, text_pair: ▲a}"), "data.text_pair", ("text column",)),
    "text_pair is label": Wrong(top("data: {text_pair: ▲a, label: a}"), "data.text_pair", ("label column",)),
    "micro_batch": Wrong(top("batch: 8\nmicro_batch: ▲16"), "micro_batch", ("16", "batch (8)")),
    "adapter may be rolled back": Wrong(
        after_lora("    train: ▲adapter", first="    accept: {gain: 0}\n"),
        "stages[1].train",
        ("'lora'", "may be absent", "attach in this stage"),
    ),
    "adapter may be skipped": Wrong(
        "stages:\n  - {name: a, train: all, rate: 1, accept: {}, otherwise: skip}\n"
        "  - {name: b, train: adapter, rate: 1, attach: {lora: {}}}\n"
        "  - {name: c, train: ▲adapter, rate: 1}\n",
        "stages[2].train",
        ("'b'", "may be absent"),
    ),
}

ALL = {**SYNTAX, **KEYS, **VALUES, **RULES}
