"""Every kind of adapter: how it begins, goes, is merged, saved, and loaded by plain PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import tiny
from alloytune.errors import InputError
from alloytune.models.adapters import Attachment
from alloytune.models.folder import read_folder
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.methods import (
    METHODS,
    AdaloraSettings,
    BottleneckSettings,
    Ia3Settings,
    LoraSettings,
    Method,
    OftSettings,
    PrefixSettings,
    ShiraSettings,
    VeraSettings,
)
from alloytune.models.reload import put_adapters
from alloytune.models.save import Places, save_tuned
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.types.adapter import KINDS, Attach
from alloytune.selection import resolve
from architectures import ARCHITECTURES
from tiny import TASK

KINDS_OF = {
    "lora": LoraSettings(2, dropout=0.1),
    "dora": LoraSettings(2, dora=True, rslora=True),
    "pissa": LoraSettings(2, pissa=True),
    "adalora": AdaloraSettings(2, 3),
    "vera": VeraSettings(8),
    "ia3": Ia3Settings(),
    "oft": OftSettings(4),
    "shira": ShiraSettings(2),
    "bottleneck": BottleneckSettings(4, "relu", "sequential", 0.0),
    "bottleneck in parallel": BottleneckSettings(4, "gelu", "parallel", 0.1, gate=True),
    "prefix": PrefixSettings(5),
    "prefix with a gate": PrefixSettings(5, gate=True),
}
EACH_KIND = pytest.mark.parametrize("settings", KINDS_OF.values(), ids=KINDS_OF)
MERGEABLE = {name: settings for name, settings in KINDS_OF.items() if settings.mergeable}
PLAIN = KINDS_OF["lora"]


def load(source: Path, moved: float = 0.1) -> ModelState:
    """Give a tiny model with a head, its weights moved so far that outputs answer to them."""
    model, fresh = load_model(TASK.auto_class, str(source), load_tokenizer(str(source)), 0, **TASK.config)
    state = ModelState(model.eval(), fresh)
    shake(state, "all", moved)
    return state


def shake(state: ModelState, selection: str, size: float = 0.2) -> None:
    names = resolve(selection, state.roles(), "train")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in named_weights(state.model).items():
            if name in names:
                weight.add_(size * torch.randn(weight.shape, generator=generator))
    state.touched |= names


def attach(state: ModelState, settings: Method, name: str = "own", on: str = "attention | mlp", **more: Any) -> None:
    more = {"stack": False, "fresh": True, "seed": 1} | more
    attachment = Attachment(name, settings, resolve(on, state.roles(), "on"), more["seed"], more["stack"])
    state.touched |= state.attach(attachment, "attach", fresh=more["fresh"])


@torch.inference_mode()
def outputs(model: Any, source: Path) -> Tensor:
    tokenizer = load_tokenizer(str(source))
    examples = TASK.encode(tiny.make_table(16), tokenizer, 32).examples
    return TASK.outputs(model.eval(), TASK.collate(examples, tokenizer))


def every_weight(state: ModelState) -> dict[str, Tensor]:
    return copy_weights(state.model, named_weights(state.model))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_recipe_and_the_table_know_the_same_kinds() -> None:
    assert set(KINDS) == {*METHODS, "folder"}
    for kind, method in METHODS.items():
        fields = set(Attach.model_fields[kind].annotation.__args__[0].model_fields) - {"on"}  # type: ignore[union-attr]
        assert fields == set(getattr(method, "__dataclass_fields__"))  # noqa: B009 - mypy sees no dataclass


@EACH_KIND
def test_a_rollback_restores_every_bit(bert: Path, settings: Method) -> None:
    state = load(bert)
    before, start = every_weight(state), outputs(state.model, bert)
    attachment = Attachment("own", settings, resolve("attention | mlp", state.roles(), "on"), 1)
    snapshot = state.snapshot(state.displaced_by([attachment]))
    attach(state, settings)
    again = outputs(state.model, bert)
    if settings.kind != "prefix":  # which is attended to from the beginning
        assert torch.allclose(again, start, atol=1e-6) if settings.moves_base else torch.equal(again, start)
    moved = {name for name, weight in every_weight(state).items() if name in before and not weight.equal(before[name])}
    assert moved == set(snapshot.weights)
    assert bool(moved) == settings.moves_base
    assert state.roles().members["adapter.own"] == state.adapter_names > set()
    shake(state, "adapter")
    assert not torch.allclose(outputs(state.model, bert), start, atol=1e-3)
    state.restore(snapshot)
    assert_same(every_weight(state), before)
    assert torch.equal(outputs(state.model, bert), start)
    assert not state.adapter_names


@EACH_KIND
def test_one_that_is_put_back_is_the_same(bert: Path, settings: Method) -> None:
    state = load(bert)
    attach(state, settings)
    shake(state, "adapter | head")
    before, weights = outputs(state.model, bert), state.touched_weights()
    other = load(bert)
    attach(other, settings, fresh=False)
    assert other.base_moved == load(bert).base_moved
    other.put(weights)
    assert torch.equal(outputs(other.model, bert), before)


@pytest.mark.parametrize("settings", MERGEABLE.values(), ids=MERGEABLE)
def test_a_merge_changes_outputs_by_rounding_and_can_be_taken_back(bert: Path, settings: Method) -> None:
    state = load(bert)
    attach(state, settings)
    shake(state, "adapter")
    before, snapshot = outputs(state.model, bert), state.snapshot(state.at_stake(["own"]))
    base = every_weight(state)
    state.merge()
    changed = {name for name, weight in every_weight(state).items() if not weight.equal(base[name])}
    assert changed <= state.touched
    assert changed <= snapshot.weights.keys()
    assert not state.adapter_names
    assert torch.allclose(outputs(state.model, bert), before, atol=1e-5)
    state.restore(snapshot)
    assert torch.equal(outputs(state.model, bert), before)
    assert_same(every_weight(state), base)


def save(state: ModelState, source: Path, folder: Path) -> tuple[dict[str, bool], Any]:
    """Save, and load the adapters by plain PEFT on what they belong on."""
    names = [attachment.name for attachment in state.attachments]
    places = Places(str(source), folder / "model", folder / "adapter", folder / "base")
    written = save_tuned(state, load_tokenizer(str(source)), places, lambda library: f"for {library}\n")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    return written, put_adapters(base, folder / "adapter", names)


@EACH_KIND
def test_saved_and_loaded_by_peft(bert: Path, tmp_path: Path, settings: Method) -> None:
    state = load(bert)
    attach(state, settings)
    shake(state, "adapter | head")
    before = outputs(state.model, bert)
    written, loaded = save(state, bert, tmp_path)
    assert written == {"model": settings.mergeable, "adapter": True, "base": True}
    assert torch.equal(outputs(loaded, bert), before)
    if settings.mergeable:
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        assert torch.allclose(outputs(merged, bert), before, atol=1e-5)
    assert (tmp_path / "adapter/README.md").read_text().startswith("for peft")


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_several_at_once(name: str, tmp_path: Path) -> None:
    source = ARCHITECTURES[name].save(tmp_path / "source")
    state = load(source)
    start = outputs(state.model, source)
    attach(state, PLAIN, "low", "attention.query")
    attach(state, LoraSettings(3), "high", "attention.output")
    attach(state, Ia3Settings(), "factors", "mlp")
    attach(state, BottleneckSettings(4, "relu", "sequential", 0.0), "neck", "attention", stack=True)
    assert torch.equal(outputs(state.model, source), start)
    members = state.roles().members
    parts = [members[f"adapter.{each}"] for each in ("low", "high", "factors", "neck")]
    assert sum(map(len, parts)) == len(frozenset().union(*parts)) == len(members["adapter"])
    assert {state.roles().shapes[each][0] for each in parts[1] if "lora_A" in each} == {3}
    shake(state, "adapter")
    before = outputs(state.model, source)
    written, loaded = save(state, source, tmp_path)
    assert written == {"model": False, "adapter": True, "base": True}
    assert torch.equal(outputs(loaded, source), before)
    assert torch.equal(outputs(state.model, source), before)

    snapshot = state.snapshot(state.at_stake(["low", "factors"]))
    state.merge(["low", "factors"])
    assert [each.name for each in state.attachments] == ["high", "neck"]
    assert torch.allclose(outputs(state.model, source), before, atol=1e-5)
    state.restore(snapshot)
    assert [each.name for each in state.attachments] == ["low", "high", "factors", "neck"]
    assert torch.equal(outputs(state.model, source), before)
    state.take_off()
    assert torch.equal(outputs(state.model, source), start)


@pytest.mark.parametrize("pair", [("lora", "pissa"), ("ia3", "lora"), ("oft", "ia3"), ("lora", "oft")], ids=str)
def test_two_on_the_same_layers(pair: tuple[str, str], bert: Path, tmp_path: Path) -> None:
    state = load(bert)
    attach(state, KINDS_OF[pair[0]], "inner")
    with pytest.raises(InputError, match=r"carries an adapter already \(inner\).*stack: true"):
        attach(state, KINDS_OF[pair[1]], "outer")
    attach(state, KINDS_OF[pair[1]], "outer", stack=True)
    shake(state, "adapter")
    before = outputs(state.model, bert)
    written, loaded = save(state, bert, tmp_path)
    assert written["model"]
    assert torch.equal(outputs(loaded, bert), before)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.allclose(outputs(merged, bert), before, atol=1e-5)


@EACH_KIND
def test_one_trained_elsewhere_is_trained_on(bert: Path, tmp_path: Path, settings: Method) -> None:
    state = load(bert)
    attach(state, settings)
    shake(state, "adapter | head")
    before, names = outputs(state.model, bert), state.adapter_names
    save(state, bert, tmp_path)
    other = load(tmp_path / "base", moved=0.0)
    attach(other, read_folder(str(tmp_path / "adapter"), "attach"))
    assert other.adapter_names == names
    assert other.attachments[0].settings.mergeable == settings.mergeable
    assert torch.equal(outputs(other.model, bert), before)


def test_folders_that_cannot_be_attached(bert: Path, gpt2: Path, tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            attach(load(bert), read_folder(str(path), "attach"))
        return str(caught.value)

    assert "holds no adapter_config.json" in refused(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(gpt2, num_labels=2, pad_token_id=0)
    get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)).save_pretrained(tmp_path / "gpt2")
    assert "no layer that the adapter in the folder is for" in refused(tmp_path / "gpt2")
    state = load(bert)
    deeper = AutoModelForSequenceClassification.from_pretrained(tiny.save_bert(tmp_path / "deep", layers=3))
    made = get_peft_model(deeper, LoraConfig(target_modules=["query"]))
    made.save_pretrained(tmp_path / "deeper")
    assert "is for another model: 2 weights" in refused(tmp_path / "deeper")
    (tmp_path / "deeper/adapter_model.safetensors").write_bytes(b"half")
    assert "cannot be read" in refused(tmp_path / "deeper")
    (tmp_path / "deeper/adapter_model.safetensors").rename(tmp_path / "deeper/adapter_model.bin")
    assert "save the adapter as safetensors" in refused(tmp_path / "deeper")
    begun = get_peft_model(state.model, LoraConfig(target_modules=["query"], init_lora_weights="pissa"))
    begun.save_pretrained(tmp_path / "pissa")
    assert "began by 'pissa'" in refused(tmp_path / "pissa")
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    get_peft_model(load(bert).model, config).save_pretrained(tmp_path / "prefix")
    assert "holds a prefix_tuning adapter; there are lora" in refused(tmp_path / "prefix")


def test_a_head_that_came_with_a_folder_stays_behind(bert: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    config = LoraConfig(target_modules="all-linear", task_type="SEQ_CLS", exclude_modules=r".*pooler.*")
    get_peft_model(model, config).save_pretrained(tmp_path)
    state = load(bert)
    head = copy_weights(state.model, state.head)
    attach(state, read_folder(str(tmp_path), "attach"))
    assert_same(copy_weights(state.model, state.head), head)


def test_what_peft_cannot_do_is_said(bert: Path, gpt2: Path) -> None:
    with pytest.raises(InputError, match=r"oft cannot be attached \(Invalid `oft_block_size` \(5\)"):
        attach(load(bert), OftSettings(5))
    with pytest.raises(InputError, match=r"shira cannot be attached .*rank 40"):
        attach(load(bert), ShiraSettings(40))
    for settings in (OftSettings(4), ShiraSettings(2)):
        with pytest.raises(InputError, match=r"cannot be attached .*Conv1D"):
            attach(load(gpt2), settings)
    with pytest.raises(InputError, match="'query' is the name of a part of this model"):
        attach(load(bert), PLAIN, "query")


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (LoraSettings(4), 2.0),  # alpha is twice the rank
        (LoraSettings(4, alpha=2), 0.5),
        (LoraSettings(4, rslora=True), 4.0),  # by the root of the rank
        (LoraSettings(4, alpha=2, rslora=True), 1.0),
        (AdaloraSettings(2, 4), 8.0),  # twice the start, divided by it where the change is added
        (AdaloraSettings(2, 4, alpha=2), 2.0),
    ],
)
def test_what_the_factors_are_scaled_by(bert: Path, settings: Method, scale: float) -> None:
    state = load(bert)
    attach(state, settings)
    layers = [layer for layer in state.model.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 12
    assert {layer.scaling["own"] for layer in layers} == {scale}


def test_the_second_factor_moves_faster_in_lora_plus(bert: Path) -> None:
    state = load(bert)
    attach(state, LoraSettings(2, plus=16), "fast", "attention")
    attach(state, PLAIN, "slow", "mlp")
    pluses = state.pluses()
    assert set(pluses.values()) == {16}
    assert pluses.keys() == {name for name in state.roles().members["adapter.fast"] if "lora_B" in name}
