"""GGUF files: dequantised once into a plain folder that says nothing of GGUF any more."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import tiny
from alloytune.errors import InputError
from alloytune.models.source import locate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALLOYTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(file: Path, model: LlamaForCausalLM, without: str = "") -> Path:
    """Write a Llama with weights in blocks of eight bits, as llama.cpp would; `without` one of its weights."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    words = [f"w{n}" for n in range(config.vocab_size)]
    words[:4] = ["<unk>", "<s>", "</s>", "▁"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(n) for n in range(len(words))])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(words) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == without:
            continue
        values = weight.numpy().astype(np.float32)
        blocks = values.ndim == 2
        kind = gguf.GGMLQuantizationType.Q8_0 if blocks else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(values, kind) if blocks else values
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=kind if blocks else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = tiny.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=32,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def test_a_file_becomes_a_plain_folder_once(tmp_path: Path, cache: Path, model: LlamaForCausalLM) -> None:
    file = write_gguf(tmp_path / "small.gguf", model)
    folder = Path(locate(str(file)))
    assert folder.is_relative_to(cache)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    made = (folder / "model.safetensors").stat().st_mtime_ns

    loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert len(AutoTokenizer.from_pretrained(folder)) == 32
    loaded.save_pretrained(tmp_path / "again")
    for name, weight in model.state_dict().items():
        if "q_proj" not in name and "k_proj" not in name:  # llama.cpp orders their rows otherwise
            assert (loaded.state_dict()[name] - weight).abs().max() < 0.01 * weight.abs().max() + 1e-6

    again = tmp_path / "folder"
    again.mkdir()
    file.rename(again / "renamed.gguf")
    assert locate(str(again)) == str(folder), "the same file under another name"
    assert (folder / "model.safetensors").stat().st_mtime_ns == made


def test_several_files_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.gguf, b\.gguf"):
        locate(str(tmp_path))


def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(InputError, match="cannot be read"):
        locate(str(tmp_path / "bad.gguf"))
    assert not cache.exists()


def test_a_file_that_lacks_weights_is_refused(tmp_path: Path, model: LlamaForCausalLM) -> None:
    file = write_gguf(tmp_path / "less.gguf", model, without="model.layers.0.mlp.up_proj.weight")
    with pytest.raises(InputError, match=r"lacks 1 weights.*up_proj"):
        locate(str(file))
