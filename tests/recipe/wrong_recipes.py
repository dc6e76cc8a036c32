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
    train = "all | adapter" if "attach: " in line else "all"
    return f"stages:\n  - name: full\n    train: {train}\n    rate: 1e-4\n    {line}\n{rest}"


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
    "unquoted layers and a role": Wrong(
        "stages:\n  - {name: a, train: ▲layers[0] & head, rate: 1e-4}\n", "", ("needs quotes", '"layers[0] & head"')
    ),
    "anchor without a name": Wrong("model: ▲& head\n", "", ("anchor", "needs quotes")),
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
    "no idea": Wrong(top("▲zebra: 1"), "zebra", ("unknown key 'zebra'", "there are about, purpose, model")),
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
    "rate nan": Wrong(
        "stages:\n  - {name: a, train: all, rate: ▲.nan}\n", "stages[0].rate", (".nan", "a finite number above 0")
    ),
    "rate nan in words": Wrong(
        "stages:\n  - {name: a, train: all, rate: ▲nan}\n", "stages[0].rate", ("'nan'", "write a finite number above 0")
    ),
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
    "metric": Wrong(top("metric: ▲f1"), "metric", ("'f1' is no metric of classification", "did you mean 'macro_f1'?")),
    "precision": Wrong(top("precision: ▲bf16"), "precision", ("did you mean 'bfloat16'?",)),
    "task": Wrong(top("task: ▲clasification"), "task", ("'clasification'", "did you mean 'classification'?")),
    "task without a name": Wrong(top("task: ▲{}"), "task", ("names no task", "exactly one")),
    "task with an unknown setting": Wrong(
        top("task: {classification: {▲weights: balanced}}"),
        "task.classification.weights",
        ("did you mean 'class_weights'?",),
    ),
    "label of tagging": Wrong(
        top("task: tagging\ndata: {▲label: mood}"), "data.label", ("tagging has no column 'label'", "tokens, tags")
    ),
    "tokens of classification": Wrong(
        top("data: {▲tokens: words}"), "data.tokens", ("no column 'tokens'", "text, label and where wanted text_pair")
    ),
    "tokens and text": Wrong(
        top("task: tagging\ndata: {▲tokens: a, text: b}"), "data.tokens", ("do not go together", "or text, spans")
    ),
    "metric of another task": Wrong(
        top("task: regression\nmetric: ▲accuracy"), "metric", ("no metric of regression", "there are r2, mae")
    ),
    "score of another task": Wrong(
        "task: regression\n" + stage("until: {epochs: 1, score: {▲f1: 0.9}}"),
        "stages[0].until.score.f1",
        ("there are r2",),
    ),
    "accept by another task's metric": Wrong(
        "task: tagging\n" + stage("accept: {metric: ▲r2}"), "stages[0].accept.metric", ("no metric of tagging",)
    ),
    "written answers of plain text": Wrong(
        top("task: generation\ndata: {text: body}\nmetric: ▲chrf"), "metric", ("plain text has no answers", "loss")
    ),
    "written answers where none are written": Wrong(
        top("task: {generation: {generate: 0}}\nmetric: ▲exact_match"), "metric", ("`generate` is 0",)
    ),
    "answers to plain text": Wrong(
        top("task: {generation: {▲max_new_tokens: 9}}\ndata: {text: body}"),
        "task.generation.max_new_tokens",
        ("there are none",),
    ),
    "prompt without its source": Wrong(
        top('task: {translation: {prompt: ▲"Translate this"}}'), "task.translation.prompt", ("has no {source}",)
    ),
    "prompt of a dialogue": Wrong(
        top("task: generation\ndata: {messages: talk, ▲prompt: asked}"), "data.prompt", ("do not go together",)
    ),
    "R2 above 1": Wrong(
        "task: regression\n" + stage("until: {epochs: 1, score: ▲2}"), "stages[0].until.score", ("2", "at most 1")
    ),
    "stratified numbers": Wrong(
        top("task: regression\ndata: {split: {stratify: ▲true}}"), "data.split.stratify", ("no single label",)
    ),
    "smoothed numbers": Wrong(
        "task: regression\n" + stage("▲label_smoothing: 0.1"), "stages[0].label_smoothing", ("regression", "remove it")
    ),
    "R-Drop of sets": Wrong("task: multilabel\n" + stage("▲r_drop: 1"), "stages[0].r_drop", ("multilabel",)),
    "no layers": Wrong(top("architecture: {layers: ▲0}"), "architecture.layers", ("0", "at least 1")),
    "pooling where nothing is pooled": Wrong(
        top("task: tagging\narchitecture: {pooling: ▲mean}"), "architecture.pooling", ("tagging", "remove it")
    ),
    "pooling of vectors": Wrong(
        top("task: embedding\narchitecture: {pooling: ▲cls}"), "architecture.pooling", ("task.embedding.pooling",)
    ),
    "two tasks": Wrong(top("task: ▲{tagging: {}, regression: {}}"), "task", ("regression and tagging", "exactly one")),
    "threshold": Wrong(top("task: {multilabel: {threshold: ▲1.5}}"), "task.multilabel.threshold", ("1.5", "below 1")),
    "class weights in words": Wrong(
        top("task: {classification: {class_weights: ▲balance}}"),
        "task.classification.class_weights",
        ("did you mean 'balanced'?",),
    ),
    "class weight of zero": Wrong(
        top("task: {classification: {class_weights: {good: ▲0}}}"),
        "task.classification.class_weights.good",
        ("above 0",),
    ),
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
    "attach a word": Wrong(stage("attach: ▲lora"), "stages[0].attach", ("'lora'", "mapping such as {lora: {rank: 8}}")),
    "otherwise": Wrong(stage("accept: {gain: 0}\n    otherwise: ▲rolback"), "stages[0].otherwise", ("'rollback'?",)),
    "retry rate": Wrong(
        stage("accept: {gain: 0}\n    otherwise: {retry: {rate: ▲x2}}"),
        "stages[0].otherwise.retry.rate",
        ("'x2' is not", "between 0 and 1"),
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
        ("'a'", "an earlier stage"),
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
        after_lora("    train: all | adapter\n    ▲attach: {lora: {}}"),
        "stages[1].attach",
        ("'lora' is still attached", "`merge: true`"),
    ),
    "second bottleneck": Wrong(
        after_lora("    train: all | adapter\n    ▲attach: {lora: {}}").replace("{lora: {}}", "{bottleneck: {}}"),
        "stages[1].attach",
        ("still attached; give this one another `name`",),
    ),
    "second adapter after a merge that may not happen": Wrong(
        after_lora(
            "    train: all\n    merge: true\n    accept: {gain: 0}\n"
            "  - name: last\n    train: all | adapter\n    rate: 1e-4\n    ▲attach: {lora: {}}"
        ),
        "stages[2].attach",
        ("may still be attached", "`merge: true`"),
    ),
    "another beside one whose merge may not happen": Wrong(
        after_lora(
            "    train: all\n    merge: true\n    accept: {gain: 0}\n"
            "  - name: last\n    train: all | adapter\n    rate: 1e-4\n    ▲attach: {name: new, lora: {}}"
        ),
        "stages[2].attach",
        ("'lora'", "may still be attached", "`stack: true`"),
    ),
    "attach nothing": Wrong(stage("attach: ▲{}"), "stages[0].attach", ("names no adapter", "{lora:")),
    "attach null lora": Wrong(stage("attach: ▲{lora: }"), "stages[0].attach", ("names no adapter",)),
    "attach both": Wrong(
        stage("attach: ▲{lora: {}, bottleneck: {}}"),
        "stages[0].attach",
        ("cannot stand in one mapping", "write a list"),
    ),
    "attach both in a list": Wrong(
        stage("attach: [{lora: {}}, ▲{lora: {}, ia3: {}}]"), "stages[0].attach[1]", ("cannot stand in one mapping",)
    ),
    "two of one name": Wrong(
        stage("attach: [{lora: {on: attention}}, ▲{lora: {on: mlp}}]"),
        "stages[0].attach[1]",
        ("two adapters are called 'lora'", "another `name`"),
    ),
    "a name that is no name": Wrong(
        stage("attach: {name: ▲in, lora: {}}"), "stages[0].attach.name", ("'in'", "selection", "another word")
    ),
    "settings behind a word": Wrong(
        stage("otherwise: ▲retry {rate: x0.3, times: 2}"), "", ("'retry'", "write {retry: {...}}")
    ),
    "settings behind a word in braces": Wrong(
        stage("otherwise: {▲retry {rate: x0.3}}"), "", ("'retry'", "write {retry: {...}}")
    ),
    "settings of a word that has none": Wrong(
        stage("accept: {}\n    otherwise: {▲rollback: pretrained}"),
        "stages[0].otherwise.rollback",
        ("takes no settings", "`otherwise: rollback`"),
    ),
    "block in a block": Wrong(
        "stages:\n  - repeat: {times: 2, stages: [{▲repeat: {times: 2, stages: [{name: a, train: all}]}}]}\n",
        "stages[0].repeat.stages[0].repeat",
        ("cannot stand in a block",),
    ),
    "schedule of another name": Wrong(
        stage("schedule: ▲wsd"), "stages[0].schedule", ("'wsd'", "did you mean 'stable-then-decay'?")
    ),
    "limit of time": Wrong(stage("until: {▲time: 5}"), "stages[0].until.time", ("did you mean 'minutes'?",)),
    "limit in words": Wrong(stage("until: ▲3 epochs"), "stages[0].until", ("such as {epochs: 3}",)),
    "gain alone": Wrong(stage("accept: ▲0.5 SE"), "stages[0].accept", ("such as {gain: 0.5 SE}",)),
    "averaged weights": Wrong(stage("▲ema: 0.9"), "stages[0].ema", ("running-average",)),
    "adapter that never moves": Wrong(
        "stages: [{name: only, train: all, ▲attach: {lora: {}}}]",
        "stages[0].attach",
        ("no stage trains the adapter 'lora'", "| adapter"),
    ),
    "one of two adapters that never moves": Wrong(
        "stages:\n"
        "  - {name: first, attach: [{lora: {}}, ▲{ia3: {}, name: scales}], train: adapter.lora | head}\n"
        "  - {name: next, train: adapter.lora}\n"
        "  - {name: last, drop: scales, attach: {lora: {}, name: more}, train: adapter.more}\n",
        "stages[0].attach[1]",
        ("'scales'",),
    ),
    "adapter drawn anew": Wrong(
        stage('reinit: ▲"layers[-1] | adapter"'), "stages[0].reinit", ("names an adapter", "`drop` and `attach`")
    ),
    "choice of what is drawn anew": Wrong(
        stage("reinit: ▲random(2, by=layer)"), "stages[0].reinit", ("is a choice", "name layers")
    ),
    "name of layers": Wrong(
        stage("attach: {name: ▲layers, lora: {}}"), "stages[0].attach.name", ("'layers'", "selection", "another word")
    ),
    "name with a dot": Wrong(stage("attach: {name: ▲a.b, lora: {}}"), "stages[0].attach.name", ("'a.b'", "a name of")),
    "typo in a list": Wrong(
        stage("attach: [{lora: {}}, {ia3: {▲rank: 2}}]"), "stages[0].attach[1].ia3.rank", ("unknown key 'rank'",)
    ),
    "attach an empty list": Wrong(stage("attach: ▲[]"), "stages[0].attach", ("at least one entry",)),
    "attach a word in a list": Wrong(stage("attach: [▲lora]"), "stages[0].attach[0]", ("'lora'", "{lora: {rank: 8}}")),
    "vera in company": Wrong(
        stage("attach: [▲{vera: {}}, {lora: {on: mlp}}]"), "stages[0].attach[0]", ("beside no other adapter", "alone")
    ),
    "dora on another": Wrong(
        stage("attach: [{lora: {}}, {name: b, lora: {dora: true}, stack: ▲true}]"),
        "stages[0].attach[1].stack",
        ("DoRA", "base weights"),
    ),
    "adalora that grows": Wrong(
        stage("attach: {adalora: {rank: ▲16}}"), "stages[0].attach.adalora.rank", ("start (12)", "lower rank")
    ),
    "prefix_tuning": Wrong(stage("attach: {▲prefix_tuning: {}}"), "stages[0].attach.prefix_tuning", ("'prefix'",)),
    "use_dora": Wrong(stage("attach: {lora: {▲use_dora: true}}"), "stages[0].attach.lora.use_dora", ("'dora'",)),
    "oft block": Wrong(stage("attach: {oft: {block: ▲1}}"), "stages[0].attach.oft.block", ("1 is not", "at least 2")),
    "adapter of another name": Wrong(
        stage("rates: {▲adapter.low: 1}\n    attach: {lora: {}}"),
        'stages[0].rates["adapter.low"]',
        ("'adapter.low'", "there is lora"),
    ),
    "merge another name": Wrong(
        after_lora("    train: all\n    merge: ▲low"), "stages[1].merge", ("no adapter 'low'", "there is lora")
    ),
    "merge from the middle": Wrong(
        after_lora("    train: all\n    merge: ▲top").replace(
            "{lora: {}}", "[{lora: {}}, {name: top, oft: {}, stack: true}]"
        ),
        "stages[1].merge",
        ("'top'", "stand on another", "`merge: true`"),
    ),
    "drop nothing": Wrong(stage("drop: ▲true"), "stages[0].drop", ("nothing is attached", "dropped")),
    "drop pissa": Wrong(
        after_lora("    train: all\n    drop: ▲true").replace("{lora: {}}", "{lora: {pissa: true}}"),
        "stages[1].drop",
        ("'lora'", "pissa", "`merge`"),
    ),
    "merge and drop": Wrong(
        after_lora("    train: all\n    merge: true\n    drop: ▲lora"),
        "stages[1].drop",
        ("merged and dropped at once",),
    ),
    "adapter on adapter": Wrong(
        stage("attach: {lora: {on: ▲adapter}}"), "stages[0].attach.lora.on", ("names the adapter itself",)
    ),
    "merge nothing": Wrong(stage("merge: ▲true"), "stages[0].merge", ("nothing is attached",)),
    "merge prefixes": Wrong(
        after_lora("    train: all\n    merge: ▲true").replace("{lora: {}}", "{prefix: {}}"),
        "stages[1].merge",
        ("prefix adapter of stage 'lora'", "cannot be merged"),
    ),
    "purpose": Wrong(top("purpose: ▲speed"), "purpose", ("speed", "economy")),
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
    "text_pair is label": Wrong(top("data: {text_pair: a, label: ▲a}"), "data.label", ("text_pair column",)),
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

PACE = {
    "optimizer typo": Wrong(stage("optimizer: ▲adamm"), "stages[0].optimizer", ("'adamm'", "did you mean 'adamw'?")),
    "optimizer with a hyphen": Wrong(
        stage("optimizer: ▲schedule-free"), "stages[0].optimizer", ("'schedule-free'", "did you mean 'schedule_free'?")
    ),
    "optimizer of another option": Wrong(
        stage("optimizer: {sgd: {▲beta1: 0.9}}"), "stages[0].optimizer.sgd.beta1", ("unknown key 'beta1'",)
    ),
    "optimizer of 4 bits": Wrong(
        stage("optimizer: {adamw: {bits: ▲4}}"), "stages[0].optimizer.adamw.bits", ("4 is not", "8")
    ),
    "no optimizer": Wrong(stage("optimizer: ▲{}"), "stages[0].optimizer", ("names none", "sgd")),
    "two optimizers": Wrong(
        stage("optimizer: ▲{sgd: {}, lion: {}}"), "stages[0].optimizer", ("sgd and lion", "keep one")
    ),
    "nesterov without momentum": Wrong(
        stage("optimizer: {sgd: {momentum: ▲0, nesterov: true}}"),
        "stages[0].optimizer.sgd.momentum",
        ("nesterov", "raise it"),
    ),
    "schedule under schedule_free": Wrong(
        stage("optimizer: schedule_free\n    schedule: ▲cosine"), "stages[0].schedule", ("schedule_free", "remove")
    ),
    "anchor under schedule_free": Wrong(
        stage("optimizer: schedule_free\n    decay_to: ▲pretrained"), "stages[0].decay_to", ("zero only", "adamw")
    ),
    "decay that leads nowhere": Wrong(
        stage("weight_decay: 0\n    ▲decay_to: pretrained"), "stages[0].decay_to", ("weight_decay of 0", "remove")
    ),
    "state of the first stage": Wrong(stage("state: ▲keep"), "stages[0].state", ("no stage before", "remove")),
    "state of another optimizer": Wrong(
        "stages:\n  - {name: a, train: all, rate: 1, optimizer: sgd}\n"
        "  - {name: b, train: all, rate: 1, state: ▲keep}\n",
        "stages[1].state",
        ("'a'", "another optimizer", "both the same"),
    ),
    "state of other weights": Wrong(
        "stages:\n  - {name: a, train: all, rate: 1, optimizer: schedule_free}\n"
        "  - {name: b, train: all, rate: 1, optimizer: schedule_free, state: ▲keep}\n",
        "stages[1].state",
        ("'a' keeps the best", "keep: last"),
    ),
    "layer decay": Wrong(stage("layer_decay: ▲1.1"), "stages[0].layer_decay", ("1.1 is not", "at most 1")),
    "schedule": Wrong(stage("schedule: ▲slant"), "stages[0].schedule", ("'slant'", "did you mean 'slanted'?")),
    "clip per layer": Wrong(stage("clip: {norm: 1.0, per: ▲layer}"), "stages[0].clip.per", ("'layer'", "group")),
    "clip without norm": Wrong(stage("clip: ▲{per: group}"), "stages[0].clip.norm", ("'norm' is missing",)),
    "clip of zero": Wrong(stage("clip: ▲0"), "stages[0].clip", ("0 is not", "above 0")),
    "mixout of all": Wrong(stage("mixout: ▲1"), "stages[0].mixout", ("1 is not", "100%")),
    "mixout to zero": Wrong(
        stage("mixout: {share: 0.1, to: ▲zero}"), "stages[0].mixout.to", ("'zero'", "pretrained", "stage-start")
    ),
    "dropout": Wrong(stage("dropout: ▲often"), "stages[0].dropout", ("'often'", "a share")),
    "r_drop": Wrong(stage("r_drop: ▲-1"), "stages[0].r_drop", ("-1 is not", "at least 0")),
}


def wise(combine: str, first: str = "", more: str = "") -> str:
    """A recipe whose second stage combines."""
    train = "all | adapter" if "attach" in first else "all"
    return (
        f"stages:\n  - {{name: full, train: {train}, rate: 1e-4{first}}}\n"
        f"  - name: wise\n    combine: {combine}\n{more}  - {{name: last, train: head}}\n"
    )


COMBINING = {
    "how": Wrong(wise("{how: ▲lerp, with: [pretrained, full]}"), "stages[1].combine.how", ("'lerp'", "interpolate")),
    "no how": Wrong(wise("▲{with: [full]}"), "stages[1].combine.how", ("'how' is missing",)),
    "one to interpolate": Wrong(
        wise("{how: interpolate, with: ▲[full]}"), "stages[1].combine.with", ("two", "[pretrained, full]")
    ),
    "changes under an adapter": Wrong(
        after_lora("    train: head\n    combine: {how: sum-of-changes, with: ▲[next]}"),
        "stages[1].combine.with",
        ("the pretrained model carries no adapter", "merge: true"),
    ),
    "changes under an adapter that cannot be merged": Wrong(
        wise("{how: interpolate, with: [▲pretrained, wise]}", ", attach: {bottleneck: {}}"),
        "stages[1].combine.with[0]",
        ("the pretrained model carries no adapter", "drop: true"),
    ),
    "elements reset": Wrong(
        wise("{how: reset, with: [pretrained], of: ▲'random(50%, by=element)'}"),
        "stages[1].combine.of",
        ("whole tensors are combined", "by=tensor"),
    ),
    "one to average": Wrong(wise("▲{how: average}"), "stages[1].combine.with", ("at least two", "names 0")),
    "unknown stage": Wrong(
        wise("{how: interpolate, with: [pretrained, ▲ful]}"), "stages[1].combine.with[1]", ("did you mean 'full'?",)
    ),
    "later stage": Wrong(
        wise("{how: average, with: [full, ▲last]}"), "stages[1].combine.with[1]", ("'last' comes later",)
    ),
    "named twice": Wrong(wise("{how: average, with: [full, ▲full]}"), "stages[1].combine.with[1]", ("twice",)),
    "changes of pretrained": Wrong(
        wise("{how: sum-of-changes, with: [▲pretrained, full]}"), "stages[1].combine.with[0]", ("anyway",)
    ),
    "weight of an average": Wrong(
        wise("{how: average, with: [pretrained, full], weight: ▲0.5}"), "stages[1].combine.weight", ("no weight",)
    ),
    "weight above 1": Wrong(
        wise("{how: interpolate, with: [pretrained, full], weight: ▲5}"), "stages[1].combine.weight", ("0 to 1",)
    ),
    "weight in words": Wrong(
        wise("{how: interpolate, with: [pretrained, full], weight: ▲best}"),
        "stages[1].combine.weight",
        ("'best'", "'validate'"),
    ),
    "too many weights": Wrong(
        wise("{how: sum-of-changes, with: [full], weight: ▲[0.5, 1]}"), "stages[1].combine.weight", ("list of 2",)
    ),
    "running average of nothing": Wrong(
        wise("{how: ▲running-average}"), "stages[1].combine.how", ("does not train", "add `train`")
    ),
    "running average chosen": Wrong(
        wise("{how: running-average, weight: ▲validate}", more="    train: head\n"),
        "stages[1].combine.weight",
        ("at most 1",),
    ),
    "reset of what": Wrong(wise("▲{how: reset, with: [pretrained]}"), "stages[1].combine.of", ("`of: layers[:4]`",)),
    "selection in of": Wrong(
        wise("{how: reset, with: [pretrained], of: ▲heed}"), "stages[1].combine.of", ("did you mean 'head'?",)
    ),
    "adapter here and not there": Wrong(
        wise("{how: interpolate, with: [▲pretrained, full]}", first=", attach: {lora: {}}"),
        "stages[1].combine.with[0]",
        ("no adapter", "the adapter of stage 'full'", "`merge: true`"),
    ),
    "adapter there and not here": Wrong(
        wise("{how: interpolate, with: [pretrained, ▲full]}", first=", attach: {lora: {}}", more="    merge: true\n"),
        "stages[1].combine.with[1]",
        ("the adapter of stage 'full'", "name 'wise'"),
    ),
    "rate without train": Wrong(
        wise("{how: average, with: [pretrained, full]}", more="    ▲rate: 1e-4\n"),
        "stages[1].rate",
        ("does nothing", "add `train`"),
    ),
    "retry without train": Wrong(
        wise(
            "{how: average, with: [pretrained, full]}",
            more="    accept: {gain: 0}\n    otherwise: ▲retry\n",
        ),
        "stages[1].otherwise",
        ("ends the same", "rollback"),
    ),
    "name pretrained": Wrong(
        "stages:\n  - {name: ▲pretrained, train: all}\n", "stages[0].name", ("the model as it came",)
    ),
}

UNTIL = {
    "score alone": Wrong(
        stage("until: ▲{score: 0.9}"), "stages[0].until", ("score alone", "{epochs: 10, score: 0.95}")
    ),
    "score above 1": Wrong(stage("until: {epochs: 1, score: ▲95}"), "stages[0].until.score", ("95", "at most 1")),
    "score of nothing": Wrong(stage("until: {epochs: 1, score: ▲{}}"), "stages[0].until.score", ("no metric",)),
    "score of null": Wrong(
        stage("until: {epochs: 1, score: {loss: ▲null}}"), "stages[0].until.score.loss", ("an empty value", "number")
    ),
    "score of what": Wrong(
        stage("until: {epochs: 1, score: {▲f1: 0.9}}"), "stages[0].until.score.f1", ("there are macro_f1, accuracy",)
    ),
    "patience of what": Wrong(
        stage("until: {epochs: 9, patience: {metric: ▲los, evaluations: 2}}"),
        "stages[0].until.patience.metric",
        ("did you mean 'loss'?",),
    ),
    "patience without evaluations": Wrong(
        stage("until: {epochs: 9, patience: ▲{metric: loss}}"),
        "stages[0].until.patience.evaluations",
        ("'evaluations' is missing",),
    ),
    "flops in words": Wrong(stage("until: {flops: ▲many}"), "stages[0].until.flops", ("'many'", "above 0")),
    "gain in words": Wrong(stage("accept: {gain: ▲half}"), "stages[0].accept.gain", ("'half'", "'0.5 SE'")),
    "gain in percent": Wrong(stage("accept: {gain: ▲1%}"), "stages[0].accept.gain", ("'1%'", "0.01")),
    "against": Wrong(stage("accept: {against: ▲bset}"), "stages[0].accept.against", ("did you mean 'best'?",)),
    "retry rate as a number": Wrong(
        stage("accept: {}\n    otherwise: {retry: {rate: ▲0.3}}"), "stages[0].otherwise.retry.rate", ("x0.3",)
    ),
}


def train(selection: str, rest: str = "") -> str:
    """A recipe whose one stage trains a selection."""
    return f"stages:\n  - name: full\n    train: {selection}\n    rate: 1e-4\n{rest}"


CHOICES = {
    "score typo": Wrong(train("▲top(rgm, 25%)"), "stages[0].train", ("unknown score 'rgm'", "did you mean 'rgn'?")),
    "share as a number": Wrong(train("▲top(rgn, 0.25)"), "stages[0].train", ("'0.25'", "such as top(rgn, 25%)")),
    "share of nothing": Wrong(train("▲random(0%)"), "stages[0].train", ("'0%'", "above 0% and below 100%")),
    "share of all": Wrong(train("▲random(100%)"), "stages[0].train", ("'100%'", "below 100%")),
    "imaginary share": Wrong(train("▲random(25j)"), "stages[0].train", ("'25j'", "share")),
    "share out of place": Wrong(train("▲layers[25%]"), "stages[0].train", ("'layers[25%]' is not a selection",)),
    "no amount": Wrong(train("▲top(rgn)"), "stages[0].train", ("'top(rgn)'", "write top(rgn, 25%)")),
    "no score": Wrong(train("▲top(25%)"), "stages[0].train", ("'top(25%)'", "write top(rgn, 25%)")),
    "unit typo": Wrong(train("▲random(2, by=layers)"), "stages[0].train", ("unknown unit 'layers'", "'layer'?")),
    "unit of lowest layers": Wrong(train("▲lowest_layers(25%, by=tensor)"), "stages[0].train", ("lowest_layers(25%)",)),
    "unknown keyword": Wrong(train("▲random(2, per=layer)"), "stages[0].train", ("write random(50%, by=layer)",)),
    "choice in a choice": Wrong(
        train("▲top(rgn, 25%, of=random(2, by=layer))"), "stages[0].train", ("a choice within a choice",)
    ),
    "elements by a tensor's score": Wrong(
        train("▲top(rgn, 1%, by=element)"), "stages[0].train", ("'rgn' is a score of whole tensors", "by=tensor")
    ),
    "cycle of elements": Wrong(train("▲cycle(by=element)"), "stages[0].train", ("by=element",)),
    "role typo within": Wrong(train("▲top(rgn, 25%, of=atention)"), "stages[0].train", ("did you mean 'attention'?",)),
    "cycle without rotation": Wrong(train("▲cycle(by=layer)"), "stages[0].train", ("choice over time",)),
    "rate of elements": Wrong(
        stage('rates: {▲"random(1%, by=element)": 1e-3}'), 'stages[0].rates["random(1%, by=element)"]', ("by=tensor",)
    ),
    "adapter on elements": Wrong(
        stage('attach: {lora: {on: ▲"random(1%, by=element)"}}'),
        "stages[0].attach.lora.on",
        ("an adapter sits beside whole layers",),
    ),
    "score of an adapter that is not there yet": Wrong(
        train("▲top(rgn, 50%, of=adapter)", "    attach: {lora: {}}\n"),
        "stages[0].train",
        ("before it is attached", "earlier stage"),
    ),
    "score for nothing": Wrong(stage("▲score: {batches: 4}"), "stages[0].score", ("asks for a score",)),
    "changes after no stage": Wrong(
        "stages:\n  - {name: full, train: all}\n"
        '  - {name: some, train: "top(weight_change, 5%)", score: {after: ▲ful}}\n',
        "stages[1].score.after",
        ("'ful' is no earlier stage", "did you mean 'full'?"),
    ),
    "changes after the stage itself": Wrong(
        train("top(weight_change, 5%)", "    score: {after: ▲full}\n"),
        "stages[0].score.after",
        ("no earlier stage", "the first stage"),
    ),
    "changes that nothing looks at": Wrong(
        'stages:\n  - {name: full, train: all}\n  - {name: some, train: "top(rgn, 5%)", score: {▲after: full}}\n',
        "stages[1].score.after",
        ("for weight_change", "remove it"),
    ),
    "score over one batch": Wrong(
        train("top(snr, 25%)", "    score: {batches: ▲1}\n"), "stages[0].score.batches", ("at least 2",)
    ),
    "scale typo": Wrong(
        "stages:\n  - {name: a, train: all, rate: {scale: ▲rgm}}\n", "stages[0].rate.scale", ("did you mean 'rgn'?",)
    ),
    "scale without a score": Wrong(
        "stages:\n  - {name: a, train: all, rate: ▲{largest: 1e-3}}\n", "stages[0].rate.scale", ("missing",)
    ),
}


def turns(line: str, rest: str = "") -> str:
    """A recipe whose one stage lets weights take turns."""
    return f"stages:\n  - name: full\n    train:\n      rotate: {line}\n{rest}"


TURNS = {
    "no choice": Wrong(
        turns("{choose: ▲layers, every: 1 epoch}"),
        "stages[0].train.rotate.choose",
        ("'layers' is the same in every turn", "random(2, by=layer)"),
    ),
    "the same choice in every turn": Wrong(
        turns("{choose: ▲lowest_layers(50%), every: 1 epoch}"), "stages[0].train.rotate.choose", ("the same in every",)
    ),
    "a choice cut down": Wrong(
        turns("{choose: '▲random(1, by=layer) & norm', every: 1 epoch}").replace("'▲", "▲'"),
        "stages[0].train.rotate.choose",
        ("may be nothing in some turn", "within `of`"),
    ),
    "choice typo": Wrong(
        turns("{choose: ▲'cycle(by=layers)', every: 1 epoch}"), "stages[0].train.rotate.choose", ("'layer'?",)
    ),
    "turns without a length": Wrong(
        turns("▲{choose: cycle()}"), "stages[0].train.rotate.every", ("'every' is missing", "'200 updates'")
    ),
    "turns by the clock": Wrong(
        turns("{choose: cycle(), every: ▲5 minutes}"), "stages[0].train.rotate.every", ("machine's speed",)
    ),
    "turns without a choice": Wrong(
        turns("▲{every: 1 epoch}"), "stages[0].train.rotate.choose", ("'choose' is missing", "selection")
    ),
    "memory of elements": Wrong(
        turns("{choose: 'random(1%, by=element)', every: 1 epoch, state: ▲keep}"),
        "stages[0].train.rotate.state",
        ("counts its updates as a whole", "write reset"),
    ),
    "memory of turns in other words": Wrong(
        turns("{choose: cycle(), every: 1 epoch, state: ▲drop}"), "stages[0].train.rotate.state", ("keep, reset",)
    ),
    "always alone": Wrong(
        "stages:\n  - name: full\n    train: ▲{always: head}\n", "stages[0].train.rotate", ("'rotate' is missing",)
    ),
    "always typo": Wrong(
        "stages:\n  - name: full\n    train: {always: ▲heed, rotate: {choose: cycle(), every: 1 epoch}}\n",
        "stages[0].train.always",
        ("did you mean 'head'?",),
    ),
    "train as a list": Wrong(
        "stages:\n  - {name: full, train: ▲[head, norm]}\n", "stages[0].train", ('join with |: "head | norm"',)
    ),
    "cycle within always": Wrong(
        "stages:\n  - name: full\n    train: {always: ▲cycle(), rotate: {choose: cycle(), every: 1 epoch}}\n",
        "stages[0].train.always",
        ("choice over time",),
    ),
    "adapter that is not there takes turns": Wrong(
        turns("{choose: ▲'random(1, of=adapter)', every: 1 epoch}"),
        "stages[0].train.rotate.choose",
        ("none is attached here",),
    ),
    "a length of LISA's": Wrong(
        turns("{choose: cycle(), ▲lisa_step_interval: 20}"),
        "stages[0].train.rotate.lisa_step_interval",
        ("did you mean 'every'?",),
    ),
    "turns and unfreezing": Wrong(
        turns("{choose: cycle(), every: 1 epoch}", "    ▲unfreeze: {}\n"),
        "stages[0].unfreeze",
        ("`train: {rotate: ...}`", "keep one of them"),
    ),
    "unfreezing and freezing": Wrong(
        stage("unfreeze: {}", "    ▲freeze_when: {change: below 1e-3}\n"),
        "stages[0].freeze_when",
        ("'freeze_when' and `unfreeze` both say", "keep one"),
    ),
    "two intervals": Wrong(
        stage("unfreeze: {one: epoch, ▲every: 20 updates}"), "stages[0].unfreeze.every", ("two intervals",)
    ),
    "unfreezing from the side": Wrong(
        stage("unfreeze: {from: ▲side}"), "stages[0].unfreeze.from", ("'side'", "one of top, bottom")
    ),
    "one layer per update": Wrong(stage("unfreeze: {one: ▲update}"), "stages[0].unfreeze.one", ("'epoch'",)),
    "unfreeze in a word": Wrong(stage("unfreeze: ▲top"), "stages[0].unfreeze", ("'top'", "mapping such as {from")),
    "unfreeze without training": Wrong(
        "stages:\n  - {name: a, train: all}\n"
        "  - {name: b, combine: {how: average, with: [a, pretrained]}, ▲unfreeze: {}}\n",
        "stages[1].unfreeze",
        ("does nothing in a stage that has no `train`",),
    ),
    "threshold as a number": Wrong(
        stage("freeze_when: {change: ▲1e-3}"), "stages[0].freeze_when.change", ("0.001", "'below 1e-3'")
    ),
    "threshold of nothing": Wrong(
        stage("freeze_when: {change: ▲below 0}"), "stages[0].freeze_when.change", ("'below 0'", "above 0")
    ),
    "no threshold": Wrong(
        stage("freeze_when: ▲{check: 10%}"), "stages[0].freeze_when.change", ("'change' is missing", "'below 1e-3'")
    ),
    "a check without end": Wrong(
        stage("freeze_when: {change: below 1e-3, check: ▲0%}"), "stages[0].freeze_when.check", ("such as 10%",)
    ),
    "schedule-free turns": Wrong(
        turns("{choose: cycle(), every: 1 epoch}", "    optimizer: ▲schedule_free\n"),
        "stages[0].optimizer",
        ("two values of a weight", "use adamw"),
    ),
    "schedule-free freezing": Wrong(
        stage("freeze_when: {change: below 1e-3}", "    optimizer: ▲schedule_free\n"),
        "stages[0].optimizer",
        ("two values of a weight",),
    ),
}


def joint(line: str, rest: str = "", train: str = "all | adapter") -> str:
    """A recipe of one stage with a joint objective, and with an adapter where one moves."""
    attach = "    attach: {lora: {}}\n" if "adapter" in train else ""
    return f"stages:\n  - name: only\n{attach}    train: {train}\n    rate: 1e-4\n    joint: {line}\n{rest}"


JOINT = {
    "one weight": Wrong(joint("▲{full: 1}", train="all"), "stages[0].joint", ("only 'full' has a weight", "two of")),
    "no weight": Wrong(joint("▲{mode: update}", train="all"), "stages[0].joint", ("no weight is given",)),
    "a weight of nothing": Wrong(joint("{full: ▲0, adapter: 1}"), "stages[0].joint.full", ("leave 'full' out",)),
    "a weight below 0": Wrong(joint("{full: ▲-1, adapter: 1}"), "stages[0].joint.full", ("-1", "such as 0.3")),
    "a weight in words": Wrong(joint("{full: ▲half, adapter: 1}"), "stages[0].joint.full", ("'half' is not a weight",)),
    "weights of nothing at a time": Wrong(
        joint('{full: "1 until 40%, 0", adapter: "0 until 60%, 1"}').replace("    joint", "    ▲joint"),
        "stages[0].joint",
        ("from 40% until 60%", "all weights are 0", "give one of them a weight there"),
    ),
    "weights of nothing to the end": Wrong(
        joint('{full: "0 -> 1 until 20 updates, 0", adapter: "1 until 30 updates, 0"}').replace(
            "    joint", "    ▲joint"
        ),
        "stages[0].joint",
        ("from 30 updates, all weights are 0",),
    ),
    "a course without ends": Wrong(
        joint('{full: ▲"1, 0", adapter: 1}'), "stages[0].joint.full", ("every piece but the last", "until")
    ),
    "a course that goes back": Wrong(
        joint('{full: ▲"1 until 40%, 2 until 30%, 0", adapter: 1}'), "stages[0].joint.full", ("do not rise",)
    ),
    "a course in two units": Wrong(
        joint('{full: ▲"1 until 40%, 2 until 30 updates, 0", adapter: 1}'), "stages[0].joint.full", ("several units",)
    ),
    "a slope without end": Wrong(
        joint('{full: ▲"1 until 30 updates, 1 -> 0", adapter: 1}'), "stages[0].joint.full", ("no end in updates",)
    ),
    "a course in minutes": Wrong(
        joint('{full: ▲"1 until 3 minutes, 0", adapter: 1}'), "stages[0].joint.full", ("'3 minutes'", "is not an end")
    ),
    "a course beyond the stage": Wrong(
        joint('{full: ▲"1 until 140%, 0", adapter: 1}'), "stages[0].joint.full", ("'140%'", "not within the stage")
    ),
    "partial of what": Wrong(
        joint("▲{full: 1, partial: 1, adapter: 1}"), "stages[0].joint.of", ("'of' is missing", "layers[-2:]")
    ),
    "of without partial": Wrong(
        joint("{full: 1, adapter: 1, ▲of: mlp}"), "stages[0].joint.of", ("`partial` has no weight",)
    ),
    "partial head": Wrong(
        joint("{full: 1, partial: 1, adapter: 1, of: ▲mlp | head}"), "stages[0].joint.of", ("no part of the base",)
    ),
    "partial elements": Wrong(
        joint("{full: 1, partial: 1, adapter: 1, of: ▲'random(1%, by=element)'}"),
        "stages[0].joint.of",
        ("chooses single elements", "write by=tensor"),
    ),
    "draws in update": Wrong(
        joint("{full: 1, adapter: 1, ▲every: 1 epoch}"), "stages[0].joint.every", ("for mode sample", "this is update")
    ),
    "divergence in sample": Wrong(
        joint("{mode: sample, full: 1, adapter: 1, ▲kl: 1}"), "stages[0].joint.kl", ("for mode views",)
    ),
    "over what": Wrong(
        joint("{mode: views, full: 1, adapter: 1, ▲over: pretrained}"), "stages[0].joint.over", ("partial view",)
    ),
    "no adapter moves": Wrong(
        joint("{full: 1, ▲adapter: 1, partial: 1, of: mlp}", train="all"),
        "stages[0].joint.adapter",
        ("moves no adapter",),
    ),
    "adapters without a weight": Wrong(
        joint("{full: 1, partial: 1, of: mlp}").replace("    joint", "    ▲joint"),
        "stages[0].joint",
        ("nothing weighs them",),
    ),
    "routing between two of a kind": Wrong(
        joint("▲{mode: route, full: 1, partial: 1, of: mlp}", train="all"),
        "stages[0].joint",
        ("route chooses between",),
    ),
    "routing without Adam": Wrong(
        joint("{mode: route, full: 1, adapter: 1}", "    optimizer: ▲sgd\n"),
        "stages[0].optimizer",
        ("memory of adamw",),
    ),
    "schedule-free draws": Wrong(
        joint("{mode: sample, full: 1, adapter: 1}", "    optimizer: ▲schedule_free\n"),
        "stages[0].optimizer",
        ("two values of a weight",),
    ),
    "schedule-free rests": Wrong(
        joint('{full: "1 until 50%, 0", adapter: 1}', "    optimizer: ▲schedule_free\n"),
        "stages[0].optimizer",
        ("some rest before",),
    ),
    "views of two passes": Wrong(
        joint("{mode: views, full: 1, adapter: 1}", "    ▲r_drop: 1\n"),
        "stages[0].r_drop",
        ("mode views takes several",),
    ),
    "operations of views": Wrong(
        joint("{mode: views, full: 1, adapter: 1}", "    until: {▲flops: 1e12}\n"),
        "stages[0].until.flops",
        ("operations of one pass",),
    ),
    "joint and unfreezing": Wrong(
        joint("{full: 1, adapter: 1}", "    unfreeze: {}\n").replace("    joint", "    ▲joint"),
        "stages[0].joint",
        ("`unfreeze`", "what moves when"),
    ),
    "a common factor of priors": Wrong(
        joint("{mode: route, full: 2, adapter: 2}").replace("    joint", "    ▲joint"),
        "stages[0].joint",
        ("all weights are 2", "only their ratios count"),
    ),
    "a common factor under Adam": Wrong(
        joint("{mode: views, full: 2, adapter: 2}").replace("    joint", "    ▲joint"),
        "stages[0].joint",
        ("only their ratios count",),
    ),
    "exclusive weights under Adam": Wrong(
        joint("{mode: views, full: 0.2, adapter: 1}", train="layers | adapter").replace("    joint", "    ▲joint"),
        "stages[0].joint",
        ("no weights are moved by two of the views", "adamw divides"),
    ),
    "a task of a view in update": Wrong(
        joint("{▲full: {task: language_modelling}, adapter: 1}"),
        "stages[0].joint.full",
        ("in mode views, and this is update", "write its weight alone"),
    ),
    "no view that is scored": Wrong(
        joint("{mode: views, full: {task: language_modelling}, adapter: {task: language_modelling}}").replace(
            "    joint", "    ▲joint"
        ),
        "stages[0].joint",
        ("every view learns something of its own", "classification", "a weight alone"),
    ),
    "rows that a view does not find": Wrong(
        joint("{mode: views, full: {task: ▲embedding}, adapter: 1}"),
        "stages[0].joint.full.task",
        ("query", "text, label", "give this view `data`"),
    ),
    "a column of another task in a view": Wrong(
        joint("{mode: views, full: {task: language_modelling, data: {train: a.csv, ▲label: b}}, adapter: 1}"),
        "stages[0].joint.full.data.label",
        ("language_modelling has no column 'label'",),
    ),
    "a test of a view's rows": Wrong(
        joint("{mode: views, full: {data: {train: a.csv, ▲test: b.csv}}, adapter: 1}"),
        "stages[0].joint.full.data.test",
        ("a view's own data is not tested",),
    ),
    "an unknown key of a view": Wrong(
        joint("{mode: views, full: {task: language_modelling, ▲wieght: 1}, adapter: 1}"),
        "stages[0].joint.full.wieght",
        ("weight",),
    ),
    "preference in a view": Wrong(
        joint(
            "{mode: views, adapter: 1,\n"
            "            full: {task: ▲preference, data: {train: a.csv, prompt: a, chosen: b, rejected: c}}}"
        ),
        "stages[0].joint.full.task",
        ("weights that a stage began with", "a stage of its own"),
    ),
    "divergence of different things": Wrong(
        joint("{mode: views, full: {task: language_modelling}, adapter: 1, ▲kl: 1}"),
        "stages[0].joint.kl",
        ("no two views learn the same",),
    ),
    "heads apart under Adam": Wrong(
        joint("{mode: views, full: {weight: 0.2, task: language_modelling}, adapter: 1}").replace(
            "    joint", "    ▲joint"
        ),
        "stages[0].joint",
        ("no weights are moved by two of the views", "let two learn the same"),
    ),
    "smoothing of what is no choice": Wrong(
        joint("{mode: views, full: {task: regression}, adapter: 1}", "    ▲label_smoothing: 0.1\n"),
        "stages[0].label_smoothing",
        ("means nothing in regression",),
    ),
    "validation of one loss": Wrong(
        joint("{full: ▲validate, adapter: validate}"),
        "stages[0].joint.full",
        ("'validate' compares", "views or sample", "one loss for all"),
    ),
    "gradients of draws": Wrong(
        joint("{mode: sample, full: ▲gradnorm, adapter: gradnorm}"), "stages[0].joint.full", ("in mode views",)
    ),
    "one found weight": Wrong(
        joint("{mode: views, full: ▲validate, adapter: 1}"), "stages[0].joint.full", ("no other view has it",)
    ),
    "weights found in two ways": Wrong(
        joint("{mode: views, full: validate, adapter: ▲gradnorm}"), "stages[0].joint.adapter", ("take one of them",)
    ),
    "balance without common ground": Wrong(
        joint("{mode: views, full: gradnorm, adapter: gradnorm}", "    optimizer: sgd\n", "layers | adapter").replace(
            "    joint", "    ▲joint"
        ),
        "stages[0].joint",
        ("gradnorm balances views on weights that all of them move", "full, adapter share none"),
    ),
}


def own(line: str, last: str = "  - {name: labels, train: all, rate: 1e-4}\n") -> str:
    """A recipe whose first stage learns something of its own, and one more line in it."""
    train = "all | adapter" if "attach" in line else "all"
    return f"stages:\n  - name: texts\n    train: {train}\n    rate: 1e-4\n    {line}\n{last}"


TASKS_OF_STAGES = {
    "a last stage that learns something else": Wrong(
        own("▲task: language_modelling", last=""),
        "stages[0].task",
        ("the last stage must learn classification", "move this stage up"),
    ),
    "a stage of two tasks": Wrong(
        own("task: ▲{embedding: {}, preference: {}}"), "stages[0].task", ("embedding and preference", "exactly one")
    ),
    "rows that the recipe does not have": Wrong(
        own("task: ▲embedding"), "stages[0].task", ("query", "text, label", "give this stage `data`")
    ),
    "a column of another task in a stage": Wrong(
        own("task: language_modelling\n    data: {train: a.csv, ▲label: b}"),
        "stages[0].data.label",
        ("language_modelling has no column 'label'",),
    ),
    "a metric of the recipe in a stage of its own": Wrong(
        own("task: language_modelling\n    accept: {metric: ▲macro_f1}"),
        "stages[0].accept.metric",
        ("no metric of language_modelling", "perplexity"),
    ),
    "a test of a stage's rows": Wrong(
        own("data: {train: a.csv, ▲test: b.csv}"), "stages[0].data.test", ("is not tested",)
    ),
    "a test cut from a stage's rows": Wrong(
        own("data: {train: a.csv, split: {▲test: 10%}}"), "stages[0].data.split.test", ("is not tested",)
    ),
    "an adapter that goes over to another task": Wrong(
        own(
            "task: language_modelling\n    attach: {lora: {}}",
            last="  - {name: ▲labels, train: all | adapter, rate: 1e-4}\n",
        ),
        "stages[1].name",
        ("adapter 'lora' of stage 'texts'", "`merge: true`"),
    ),
    "an adapter that cannot go into the body": Wrong(
        own(
            "task: language_modelling\n    attach: ▲{bottleneck: {}}",
            last="  - {name: labels, drop: true, train: all, rate: 1e-4}\n",
        ),
        "stages[0].attach",
        ("a bottleneck adapter cannot be merged into the body",),
    ),
    "a prefix that cannot go into the body": Wrong(
        own(
            "task: language_modelling\n    attach: ▲{prefix: {}}\n    accept: {}",
            last="  - {name: labels, drop: true, train: all, rate: 1e-4}\n",
        ),
        "stages[0].attach",
        ("a prefix adapter cannot be merged into the body",),
    ),
    "memory of another task": Wrong(
        own("task: language_modelling", last="  - {name: labels, train: all, rate: 1e-4, state: ▲keep}\n"),
        "stages[1].state",
        ("learns something else",),
    ),
    "a batch of one against itself": Wrong(
        "task: embedding\nbatch: 1\nstages:\n  - {name: ▲full, train: all, rate: 1e-4}\n",
        "stages[0].name",
        ("batch is 1", "2 or more"),
    ),
    "mixout and layers called after it": Wrong(
        "activation_checkpointing: true\nstages:\n  - {name: full, train: all, rate: 1e-4, mixout: ▲0.1}\n",
        "stages[0].mixout",
        ("activation_checkpointing", "remove one"),
    ),
    "mixout in two passes": Wrong(
        "task: embedding\nmicro_batch: 4\nstages:\n  - {name: full, train: all, rate: 1e-4, mixout: ▲0.1}\n",
        "stages[0].mixout",
        ("micro_batch", "remove one"),
    ),
}

ALL = {
    **SYNTAX,
    **KEYS,
    **VALUES,
    **RULES,
    **PACE,
    **COMBINING,
    **UNTIL,
    **CHOICES,
    **TURNS,
    **JOINT,
    **TASKS_OF_STAGES,
}
