"""The other side of a case: transformers' Trainer with PEFT, at its defaults or tuned, or AdapterHub's library.

Nothing here imports this project where labels are learned, so that it runs in an environment without it.
"""

import gc
import math
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from cases import ALPHA, RANK, SEED, WARMUP, Case, Stage
from meter import held_bytes, peak_bytes, reset_peak, seconds_since_start, warm_up
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

LINEAR = r"(query|key|value|dense|q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
Rows = list[dict[str, Any]]


def fine_tune(case: Case, source: str, splits: Path, scratch: Path, *, tuned: bool, hub: bool) -> dict[str, Any]:
    """Carry out a case's trainings one after another.

    Where there are several, the model is scored on validation and saved after each, adapters merged.
    """
    warm_up()
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows, labels = read_rows(case, source, splits, tokenizer)
    set_seed(SEED)
    seconds: list[float] = []
    started, peak, held, moved = None, 0, 0, []
    model: Any = None
    for number, stage in enumerate(case.stages):
        model = None
        gc.collect()
        model = prepare_model(case, stage, source, len(labels), hub=hub)
        moved.append(sum(weight.numel() for weight in model.parameters() if weight.requires_grad))
        trainer = make_trainer(case, stage, model, rows["train"], tokenizer, scratch, tuned=tuned, hub=hub)
        reset_peak()
        started, held = started or seconds_since_start(), held or held_bytes()
        seconds.append(trainer.train().metrics["train_runtime"])
        peak = max(peak, peak_bytes())
        if len(case.stages) > 1:
            trainer.evaluate(rows["validation"])
            source = str(scratch / f"stage-{number}")
            model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
            model.save_pretrained(source)
    scores = test(case, model, rows["test"], tokenizer)
    tokens = sum(len(row["input_ids"]) for row in rows["train"]) * sum(stage.epochs for stage in case.stages)
    return {
        "seconds": sum(seconds),
        "whole_seconds": seconds_since_start(),
        "start_seconds": started,
        "tokens_per_second": tokens / sum(seconds),
        "peak_memory_bytes": peak,
        "held_before_bytes": held,
        "stage_seconds": seconds,
        "trained_parameters": moved,
        "scores": scores,
        "rows": {split: len(some) for split, some in rows.items()},
        "precision": "bfloat16" if tuned else "float32",
    }


def read_rows(case: Case, source: str, splits: Path, tokenizer: Any) -> tuple[dict[str, Rows], list[str]]:
    """Tokenize the splits that this project cut; also give the labels in order."""
    if case.is_writing:
        from ours import tokenize

        return {split: tokenize(case, source, splits, split) for split in ("train", "test")}, []
    import polars as pl

    tables = {split: pl.read_parquet(splits / f"{split}.parquet") for split in ("train", "validation", "test")}
    labels = sorted(tables["train"]["label"].unique())
    return {
        split: [
            {**tokenizer(text, truncation=True, max_length=case.max_length), "labels": labels.index(label)}
            for text, label in zip(table["text"], table["label"], strict=True)
        ]
        for split, table in tables.items()
    }, labels


def prepare_model(case: Case, stage: Stage, source: str, num_labels: int, *, hub: bool) -> Any:
    """Load a model and free what a stage moves; a joint objective is held against full fine-tuning."""
    if case.is_writing:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    else:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=num_labels, output_loading_info=True
        )
        fresh = set(info["missing_keys"])  # a pooler that the checkpoint lacks belongs to the head
    if stage.method in ("full", "joint"):
        return model
    tops = "|".join(str(n) for n in range(case.num_layers - case.top, case.num_layers))
    if hub:
        return _with_hub_lora(model)
    if stage.method.startswith("lora"):
        from peft import LoraConfig, get_peft_model

        where = rf".*layers?\.({tops if stage.method == 'lora-top' else '[0-9]+'})\..*{LINEAR}"
        kept = None if case.is_writing else ["classifier"]
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=where, modules_to_save=kept)
        return get_peft_model(model, config)
    moving = rf"^classifier\.|layer\.({tops})\." if stage.method == "top" else r"^classifier\."
    for name, weight in model.named_parameters():
        weight.requires_grad = name in fresh or re.search(moving, name) is not None
    return model


def _with_hub_lora(model: Any) -> Any:
    """Attach AdapterHub's LoRA to every linear layer; its head, which is transformers' own here, moves along."""
    import adapters

    adapters.init(model)
    everywhere = {
        "selfattn_lora": True,
        "intermediate_lora": True,
        "output_lora": True,
        "attn_matrices": ["q", "k", "v"],
    }
    model.add_adapter("race", config=adapters.LoRAConfig(r=RANK, alpha=ALPHA, **everywhere))
    model.train_adapter("race")
    for weight in model.classifier.parameters():
        weight.requires_grad = True
    return model


def make_trainer(
    case: Case, stage: Stage, model: Any, rows: Rows, tokenizer: Any, scratch: Path, *, tuned: bool, hub: bool
) -> Any:
    """Make a Trainer at its defaults, but for epochs, rate, batch and seed; or tuned."""
    updates = stage.epochs * math.ceil(len(rows) / case.batch)
    options: dict[str, Any] = {"use_cpu": not torch.cuda.is_available()}
    if tuned:
        is_old = int(transformers.__version__.split(".")[0]) < 5
        options |= {"bf16": True, "optim": "adamw_torch_fused"}
        options |= {"group_by_length": True} if is_old else {"train_sampling_strategy": "group_by_length"}
    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        num_train_epochs=stage.epochs,
        learning_rate=stage.rate,
        warmup_steps=math.ceil(WARMUP * updates),
        per_device_train_batch_size=case.batch,
        seed=SEED,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **options,
    )
    collate = DataCollatorForSeq2Seq(tokenizer) if case.is_writing else DataCollatorWithPadding(tokenizer)
    kind: Any = Trainer
    if hub:
        from adapters import AdapterTrainer

        kind = AdapterTrainer
    return kind(model, arguments, train_dataset=rows, data_collator=collate)


@torch.inference_mode()
def test(case: Case, model: Any, rows: Rows, tokenizer: Any) -> dict[str, float]:
    """Score in float32 on the test rows: accuracy and mean loss, or the mean loss of the tokens to be written."""
    model.eval()
    collate = DataCollatorForSeq2Seq(tokenizer) if case.is_writing else DataCollatorWithPadding(tokenizer)
    loss, targets, right = 0.0, 0, 0
    for start in range(0, len(rows), 8):
        batch = collate(rows[start : start + 8]).to(model.device)
        labels = batch.pop("labels")
        logits = model(**batch).logits.float()
        if case.is_writing:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        loss += float(cross_entropy(logits, labels, reduction="sum"))
        targets += int((labels != -100).sum())
        right += int((logits.argmax(-1) == labels).sum())
    return {"loss": loss / targets} | ({} if case.is_writing else {"accuracy": right / targets})
