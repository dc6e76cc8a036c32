"""Bottleneck adapters under PEFT's own tools."""

import importlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2Model, T5Config, T5Model

from alloytune.errors import InputError
from alloytune.models import bottleneck
from alloytune.models.bottleneck import BottleneckConfig, BottleneckLayer

IDS = torch.arange(1, 13).reshape(2, 6)
OUTPUTS = r".*(attention\.output\.dense|layer\.\d\.output\.dense)"
WIDTH, INNER = 16, 24


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=INNER,
        max_position_embeddings=16,
        initializer_range=0.5,  # at 0.02 a model this small hardly answers to its weights
    )
    return BertForSequenceClassification(config).eval()


def config(**settings: object) -> BottleneckConfig:
    return BottleneckConfig(**{"target_modules": OUTPUTS, "reduction": 4, **settings})


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def train(model: nn.Module, updates: int = 3) -> None:
    """Move what may move; seeded, so that two models of the same weights move alike."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    for _ in range(updates):
        model(IDS, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if "bottleneck_" in name}


@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_attaching_changes_no_output(placement: str) -> None:
    model = bert()
    before = logits(model)

    assert torch.equal(logits(get_peft_model(model, config(placement=placement))), before)


@pytest.mark.parametrize(("placement", "sources"), [("sequential", (WIDTH, WIDTH)), ("parallel", (WIDTH, INNER))])
def test_parameter_count(placement: str, sources: tuple[int, int]) -> None:
    model = inject_adapter_in_model(config(placement=placement), bert())
    neck = WIDTH // 4
    per_layer = sum(source * neck + neck + neck * WIDTH + WIDTH for source in sources)

    assert sum(value.numel() for value in adapter_weights(model).values()) == 2 * per_layer


def test_the_bottleneck_is_at_least_one_wide() -> None:
    model = inject_adapter_in_model(config(reduction=1000), bert())

    assert {value.shape[0] for name, value in adapter_weights(model).items() if "down" in name} == {1}


def test_the_base_is_frozen_and_gets_no_gradient() -> None:
    model = inject_adapter_in_model(config(), bert())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model)
    model(IDS, labels=torch.tensor([0, 1])).loss.backward()

    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == ("bottleneck_" not in name), name
        assert torch.equal(parameter, before[name]) == ("bottleneck_" not in name), name


def test_trained_weights_survive_saving(tmp_path: Path) -> None:
    model = get_peft_model(bert(), config(activation="gelu", placement="parallel"))
    untrained = logits(model)
    train(model)
    trained = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(bert(), tmp_path)

    assert not torch.equal(trained, untrained)
    assert torch.equal(logits(loaded.eval()), trained)
    assert loaded.peft_config["default"].reduction == 4
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"


LOAD_ELSEWHERE = """
import sys
import torch
import alloytune.models.bottleneck
from peft import PeftModel
from transformers import BertForSequenceClassification

torch.set_num_threads(1)
model = PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained(sys.argv[1]), sys.argv[2]).eval()
with torch.no_grad():
    torch.save(model(torch.arange(1, 13).reshape(2, 6)).logits, sys.argv[3])
"""


@pytest.mark.slow
def test_a_fresh_process_needs_only_the_import(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "base")
    model = get_peft_model(bert(), config())
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    places = [str(tmp_path / name) for name in ("base", "adapter", "logits")]
    subprocess.run([sys.executable, "-c", LOAD_ELSEWHERE, *places], check=True)

    assert torch.equal(torch.load(places[-1]), logits(model))


def test_an_injected_model_has_the_same_state_as_a_wrapped_one() -> None:
    wrapped = get_peft_model(bert(), config())
    injected = inject_adapter_in_model(config(), bert())
    train(injected)
    state = get_peft_model_state_dict(injected)
    names = {name.removeprefix("base_model.model.") for name in get_peft_model_state_dict(wrapped)}

    assert state.keys() == names
    assert all("bottleneck_" in name for name in names)
    set_peft_model_state_dict(wrapped, {f"base_model.model.{name}": value for name, value in state.items()})
    assert torch.equal(logits(wrapped), logits(injected))


def test_disable_and_enable() -> None:
    model = get_peft_model(bert(), config())
    before = logits(model)
    train(model)
    trained = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)

    assert torch.equal(logits(model), trained)
    assert not torch.equal(trained, before)


def test_unload_gives_back_the_original_modules() -> None:
    model = bert()
    modules, before = dict(model.named_modules()), logits(model)
    wrapped = get_peft_model(model, config())
    train(wrapped)
    restored = wrapped.unload()

    assert restored is model
    assert dict(model.named_modules()) == modules
    assert torch.equal(logits(model), before)


@pytest.mark.filterwarnings("ignore:Adapter second was active which is now deleted")
def test_two_adapters_by_name() -> None:
    model = get_peft_model(bert(), config(), adapter_name="first")
    before = logits(model)
    train(model)
    first = logits(model)
    model.add_adapter("second", config(placement="parallel", reduction=2))
    assert torch.equal(logits(model), first)

    model.set_adapter("second")
    assert torch.equal(logits(model), before)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        name for name in adapter_weights(model) if ".second." in name
    }
    train(model)
    assert not torch.equal(logits(model), before)
    model.set_adapter("first")
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)
    assert not any(".second." in name for name in adapter_weights(model))


def test_parallel_and_sequential_differ_once_trained() -> None:
    outputs = []
    for placement in ("parallel", "sequential"):
        model = inject_adapter_in_model(
            config(placement=placement, target_modules=r".*attention\.output\.dense"), bert()
        )
        torch.manual_seed(1)
        for value in adapter_weights(model).values():
            nn.init.normal_(value)
        outputs.append(logits(model))

    assert not torch.allclose(*outputs)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("sequential", [[1.0, -2.0]]),  # down gives 1 - 2 = -1, which relu stops
        ("parallel", [[2.0, -1.0]]),  # down gives -1 + 2 = 1, and up adds it to both
    ],
)
def test_the_formula_by_hand(placement: str, expected: list[list[float]]) -> None:
    layer = nn.Linear(2, 2, bias=False)
    nn.init.eye_(layer.weight)
    layer.weight.data.neg_()
    model = get_peft_model(nn.Sequential(layer), config(target_modules=["0"], reduction=2, placement=placement))
    for name, value in adapter_weights(model).items():
        nn.init.constant_(value, 1.0 if "weight" in name else 0.0)

    assert torch.equal(model(torch.tensor([[-1.0, 2.0]])), torch.tensor(expected))


def test_dropout_acts_in_training_only() -> None:
    model = inject_adapter_in_model(config(dropout=0.5), bert())
    train(model)
    assert torch.equal(logits(model), logits(model))
    for module in model.modules():
        if isinstance(module, BottleneckLayer):
            module.train()
    assert not torch.equal(logits(model), logits(model))


def test_transposed_linear_layers() -> None:
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)).eval()
    before = model(IDS).last_hidden_state
    model = inject_adapter_in_model(config(target_modules=["mlp.c_proj"], placement="parallel"), model)
    shapes = {name.split("bottleneck_")[1]: tuple(value.shape) for name, value in adapter_weights(model).items()}

    assert shapes["down.default.weight"] == (4, 64)
    assert torch.equal(model(IDS).last_hidden_state, before)


def test_models_that_read_a_layers_weight() -> None:
    config_ = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    model = inject_adapter_in_model(config(target_modules=["wo"]), T5Model(config_))

    assert model(input_ids=IDS, decoder_input_ids=IDS).last_hidden_state.shape == (2, 6, 16)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(autocast: bool) -> None:
    model = bert() if autocast else bert().to(torch.bfloat16)
    wrapped = get_peft_model(model, config())
    assert {value.dtype for value in adapter_weights(wrapped).values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        train(wrapped, updates=1)
        assert logits(wrapped).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"activation": "rleu"}, "rleu"),
        ({"reduction": 0}, "reduction must be at least 1, not 0"),
        ({"placement": "beside"}, "beside"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_values_that_cannot_be(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        config(**settings)


def test_targets_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="not found in the base model"):
        get_peft_model(bert(), config(target_modules=["nowhere"]))
    with pytest.raises(ValueError, match="not on Embedding"):
        get_peft_model(bert(), config(target_modules=["word_embeddings"]))


def test_merging_is_refused_before_anything_changes() -> None:
    model = get_peft_model(bert(), config())
    train(model)
    before = logits(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(InputError, match="cannot be folded"):
            merge()
    assert torch.equal(logits(model), before)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_beside_lora() -> None:
    model = bert()
    before = logits(model)
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=OUTPUTS), model, "lora")
    model = inject_adapter_in_model(config(), model, "neck")
    assert torch.equal(logits(model), before)

    train(model)
    assert not torch.equal(logits(model), before)
    assert all("bottleneck_" in name for name in get_peft_model_state_dict(model, adapter_name="neck"))
    assert all("lora_" in name for name in get_peft_model_state_dict(model, adapter_name="lora"))


def test_a_config_is_the_same_file_in_every_process(tmp_path: Path) -> None:
    names = [f"layer.{number}" for number in range(30)]
    BottleneckConfig(target_modules=set(names)).save_pretrained(tmp_path)

    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == sorted(names)


def test_importing_again_registers_once() -> None:
    """In a process of its own: other tests here hold the classes that importing again replaces."""
    before = [member.name for member in PeftType]

    def import_again() -> None:
        importlib.reload(bottleneck)
        assert [member.name for member in PeftType] == before

    process = multiprocessing.get_context("fork").Process(target=import_again)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert before.count("BOTTLENECK") == 1
