"""Frozen layers, found in every architecture, give the same whether they run or are stood in for."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from alloytune.machine import Machine
from alloytune.models.adapters import Attachment
from alloytune.models.frozen_prefix import FrozenPrefix, Hidden, Inputs, find_frozen_prefix, plain_inputs
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.methods import METHODS
from alloytune.models.state import ModelState
from alloytune.models.weights import free_only, named_weights
from alloytune.tasks.task import Example
from alloytune.train.prefix_reader import Reading, agrees
from architectures import ARCHITECTURES
from tiny import TASK

EXACT = Machine(torch.device("cpu"), torch.float32)
NOT_STOOD_IN_FOR = {"xlnet"}  # its rows stand in columns


class Loaded:
    """A tiny model with three examples, of the least, a middle and the greatest length."""

    def __init__(self, source: Path) -> None:
        tokenizer = load_tokenizer(str(source))
        model, fresh = load_model(TASK.auto_class, str(source), tokenizer, 0, **TASK.config)
        order = sorted(TASK.encode(tiny.make_table(40), tokenizer, 30).examples, key=lambda example: example.num_tokens)
        self.state = ModelState(model, fresh)
        self.examples: list[Example] = [order[0], order[20], order[-1]]
        self.reading = Reading(partial(TASK.collate, tokenizer=tokenizer), TASK.outputs, EXACT)
        self.layers = self.state.roles().stacks["layers"]

    @property
    def inputs(self) -> Inputs:
        return self.reading.collate(self.examples).inputs

    def find(self, moving: frozenset[str]) -> FrozenPrefix | None:
        free_only(self.state.model, moving)
        self.state.model.eval()
        batch = self.reading.collate(self.examples)
        return find_frozen_prefix(
            self.state.model, self.state.roles(), lambda: self.reading.outputs_of(self.state.model, batch)
        )

    def found(self, moving: frozenset[str]) -> FrozenPrefix:
        prefix = self.find(moving)
        assert prefix is not None
        return prefix


@pytest.fixture
def deep(tmp_path: Path) -> Loaded:
    return Loaded(tiny.save_bert(tmp_path / "deep", layers=4))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_layers_of_every_architecture_are_found_and_stood_in_for(name: str, tmp_path: Path) -> None:
    loaded = Loaded(ARCHITECTURES[name].save(tmp_path))
    prefix = loaded.find(loaded.layers[-1] | loaded.state.head)
    if name == "albert":  # its layers are one
        assert prefix is None
        return
    assert prefix is not None
    assert prefix.num_layers == len(loaded.layers) - 1
    assert agrees(prefix, loaded.reading, loaded.examples) == (name not in NOT_STOOD_IN_FOR)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "deberta-v2"])
def test_a_head_alone_stands_on_all_layers(name: str, tmp_path: Path) -> None:
    loaded = Loaded(ARCHITECTURES[name].save(tmp_path))
    prefix = loaded.found(loaded.state.head)
    assert prefix.num_layers == len(loaded.layers)
    assert agrees(prefix, loaded.reading, loaded.examples)


def test_what_stands_before_the_layers_need_not_run(deep: Loaded) -> None:
    (chain,) = deep.found(deep.state.head).chains
    assert chain.entry is deep.state.model.bert.embeddings  # not the norm that is the last of it


def test_what_moves_decides_how_many_layers_stand_still(deep: Loaded) -> None:
    head = deep.state.head
    assert [deep.found(layer | head).num_layers for layer in deep.layers[1:]] == [1, 2, 3]
    assert deep.find(deep.layers[0] | head) is None
    members = deep.state.roles().members
    assert deep.find(members["embeddings"]) is None
    assert deep.find(frozenset({"bert.embeddings.LayerNorm.bias"})) is None
    assert deep.found(members["pooler"] | head).num_layers == 4


def test_a_decoder_stands_still_on_a_frozen_encoder_alone(tmp_path: Path) -> None:
    loaded = Loaded(ARCHITECTURES["bart"].save(tmp_path))
    stacks = loaded.state.roles().stacks
    of_both = loaded.found(stacks["decoder.layers"][1])
    assert [len(chain.layers) for chain in of_both.chains] == [2, 1]
    of_encoder = loaded.found(stacks["encoder.layers"][1])
    assert [len(chain.layers) for chain in of_encoder.chains] == [1]
    of_whole_encoder = loaded.found(stacks["decoder.layers"][0])
    assert [len(chain.layers) for chain in of_whole_encoder.chains] == [2]
    for prefix in (of_both, of_encoder, of_whole_encoder):
        assert agrees(prefix, loaded.reading, loaded.examples)


def test_a_prefix_may_end_before_adapters_that_rest(deep: Loaded) -> None:
    where = deep.layers[1]
    deep.state.attach(Attachment("low", METHODS["lora"](rank=2), where, 0), "test")
    moving = deep.layers[3] | deep.state.head
    assert deep.found(moving).num_layers == 3
    free_only(deep.state.model, moving)
    batch = deep.reading.collate(deep.examples)
    prefix = find_frozen_prefix(
        deep.state.model,
        deep.state.roles(),
        lambda: deep.reading.outputs_of(deep.state.model, batch),
        adapters=False,
    )
    assert prefix is not None
    assert prefix.num_layers == 1


def test_the_fingerprint_is_of_what_bears_on_the_layers(deep: Loaded) -> None:
    head = deep.state.head
    weights = named_weights(deep.state.model)
    prefix = deep.found(deep.layers[2] | head)
    before = prefix.fingerprint("float32")
    assert prefix.fingerprint("bfloat16") != before

    def changed(name: str) -> bool:
        with torch.no_grad():
            weights[name].view(-1)[-1] += 1e-3
        return prefix.fingerprint("float32") != before

    def taken_back(name: str) -> bool:
        with torch.no_grad():
            weights[name].view(-1)[-1] -= 1e-3
        return deep.found(deep.layers[2] | head).fingerprint("float32") == before

    bearing = [*deep.layers[0], *deep.layers[1], *deep.state.roles().members["embeddings"]]
    zeros = [name for name in sorted(bearing) if not weights[name].any()]  # which are the same bits afterwards
    assert zeros
    for name in zeros:
        assert changed(name), name
        assert taken_back(name), name
    assert not any(changed(name) for name in [*deep.layers[2], *deep.layers[3], *head])


def test_known_weights_count_by_name_alone(deep: Loaded) -> None:
    weights = named_weights(deep.state.model)
    prefix = deep.found(deep.layers[2] | deep.state.head)
    known, moved = (weights[sorted(deep.layers[number])[0]] for number in (0, 1))
    before = prefix.fingerprint(known={known: "first"})
    with torch.no_grad():
        known.view(-1)[-1] += 1
    assert prefix.fingerprint(known={known: "first"}) == before
    assert prefix.fingerprint(known={known: "second"}) != before
    with torch.no_grad():
        moved.view(-1)[-1] += 1
    assert prefix.fingerprint(known={known: "first"}) != before


def test_the_layers_draw_nothing_and_know_no_dropout(deep: Loaded) -> None:
    prefix = deep.found(deep.layers[2] | deep.state.head)
    with prefix.serving(lambda inputs: None):
        deep.state.model.train()
        before = torch.get_rng_state()
        once, again = prefix.compute(deep.inputs), prefix.compute(deep.inputs)
        assert torch.equal(torch.get_rng_state(), before)
        assert deep.state.model.training
    assert torch.equal(once[0], again[0])


def test_the_model_is_as_before_afterwards(deep: Loaded) -> None:
    prefix = deep.found(deep.layers[2] | deep.state.head)
    model = deep.state.model
    expected = model(**deep.inputs).logits

    def zeros(inputs: Inputs) -> Hidden:
        return (torch.zeros(*inputs["input_ids"].shape, tiny.WIDTH),)

    with prefix.serving(zeros):
        served: Tensor = model(**deep.inputs).logits
        assert torch.equal(served[0], served[1])  # there is nothing left of the texts
        assert torch.equal(model(**deep.inputs, use_cache=True).logits, expected)  # no plain call
    assert torch.equal(model(**deep.inputs).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_only_tensors_make_a_plain_call() -> None:
    ids = torch.ones(1, 2, dtype=torch.long)
    assert plain_inputs((), {"input_ids": ids, "use_cache": False}) is not None
    assert plain_inputs((ids,), {}) is None
    assert plain_inputs((), {"inputs_embeds": ids}) is None
    assert plain_inputs((), {"input_ids": ids, "use_cache": True}) is None
    assert plain_inputs((), {"input_ids": ids, "past_key_values": object()}) is None
