"""Tiny pretrained folders of every family: the language model or bare body, without a classification head."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import tiny

PLAIN: dict[str, Any] = {
    "vocab_size": len(tiny.WORDS),
    "hidden_size": tiny.WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 2 * tiny.WIDTH,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DECODER = PLAIN | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": None}
SIZES = {key: PLAIN[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
SIDES = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 2, "ffn_dim": 32, "attention_heads": 2}.items()
}
DEBERTA = PLAIN | {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "type_vocab_size": 0,
    "position_biased_input": False,
}


@dataclass(frozen=True)
class Architecture:
    """How to make one: the class, the settings of its config, and what its tokenizer is like.

    `special` gives tokens 0 to 3, `inputs` what the model reads.
    """

    model: str
    settings: Mapping[str, Any] = field(default_factory=lambda: PLAIN)
    special: tuple[str, ...] = tiny.SPECIAL
    padding: bool = True
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    padding_side: str = "right"

    def save(self, folder: Path) -> Path:
        """Write a random model and its tokenizer."""
        torch.manual_seed(1)
        model_class = getattr(transformers, self.model)
        model_class(model_class.config_class(**self.settings)).save_pretrained(folder)
        tokenizer = tiny.make_tokenizer(padding=self.padding, special=self.special, padding_side=self.padding_side)
        tokenizer.model_input_names = list(self.inputs)
        tokenizer.model_max_length = int(1e30)
        tokenizer.save_pretrained(folder)
        return folder


WITH_TYPES = ("input_ids", "token_type_ids", "attention_mask")
ROBERTA_TOKENS = ("[CLS]", "[PAD]", "[UNK]", "[SEP]")
NO_PADDING = {"padding": False}

ARCHITECTURES = {
    "bert": Architecture("BertForMaskedLM", inputs=WITH_TYPES),
    "roberta": Architecture(
        "RobertaForMaskedLM",
        PLAIN | {"max_position_embeddings": 34, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0},
        special=ROBERTA_TOKENS,
    ),
    "distilbert": Architecture(
        "DistilBertForMaskedLM",
        SIZES | {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32},
    ),
    "albert": Architecture("AlbertForMaskedLM", PLAIN | {"embedding_size": 8}, inputs=WITH_TYPES),
    "deberta-v2": Architecture("DebertaV2ForMaskedLM", DEBERTA, inputs=WITH_TYPES),
    "electra": Architecture("ElectraForPreTraining", PLAIN | {"embedding_size": 8}, inputs=WITH_TYPES),
    "modernbert": Architecture("ModernBertForMaskedLM", PLAIN | {"cls_token_id": 2, "sep_token_id": 3}),
    "xlnet": Architecture(
        "XLNetLMHeadModel",
        SIZES | {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
        inputs=WITH_TYPES,
        padding_side="left",  # it reads a text's label from the last position
    ),
    "mpnet": Architecture(
        "MPNetForMaskedLM",
        PLAIN | {"max_position_embeddings": 34, "pad_token_id": 1, "bos_token_id": 0},
        special=ROBERTA_TOKENS,
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        SIZES | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": None},
        **NO_PADDING,
    ),
    "gpt-neox": Architecture("GPTNeoXForCausalLM", PLAIN | {"pad_token_id": None}, **NO_PADDING),
    "opt": Architecture(
        "OPTForCausalLM",
        {key: value for key, value in PLAIN.items() if key != "intermediate_size"}
        | {"ffn_dim": 32, "word_embed_proj_dim": 8, "pad_token_id": 1, "bos_token_id": 0},
        special=ROBERTA_TOKENS,
    ),
    "llama": Architecture("LlamaForCausalLM", DECODER, **NO_PADDING),
    "qwen2": Architecture("Qwen2ForCausalLM", DECODER),
    "qwen3": Architecture("Qwen3ForCausalLM", DECODER),
    "gemma2": Architecture("Gemma2ForCausalLM", DECODER | {"pad_token_id": 0}),
    "gemma3": Architecture("Gemma3ForCausalLM", DECODER | {"pad_token_id": 0}),
    "mistral": Architecture("MistralForCausalLM", DECODER, **NO_PADDING),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        SIZES | {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "bart": Architecture(
        "BartForConditionalGeneration",
        SIZES
        | SIDES
        | {
            "d_model": 16,
            "max_position_embeddings": 32,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "decoder_start_token_id": 3,
        },
        special=ROBERTA_TOKENS,
    ),
}
