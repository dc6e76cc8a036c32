"""What frozen layers gave, kept and read back: nothing stale, nothing that depends on batches, nothing lost on disk."""

import os
import resource
import tempfile
from collections.abc import Sequence
from functools import partial
from mmap import ALLOCATIONGRANULARITY
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from alloytune.errors import InputError
from alloytune.machine import Machine
from alloytune.models.frozen_prefix import FrozenPrefix, find_frozen_prefix
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.state import ModelState
from alloytune.models.weights import Weights, copy_weights, free_only, named_weights
from alloytune.tasks.task import Batch, Example
from alloytune.tasks.writing import Writing
from alloytune.train import activations
from alloytune.train.activations import Activations, Block, Shelf, cut_block, lay_out, look_up
from alloytune.train.batches import Updates
from alloytune.train.calls import read_call
from alloytune.train.clip import make_clip
from alloytune.train.loop import training_steps
from alloytune.train.moving import Group, Moving, make_optimizer
from alloytune.train.optimizers import OptimizerSettings
from alloytune.train.prefix_reader import PrefixReader, Reading
from alloytune.train.regularize import dropout_at
from alloytune.train.turns import Turns, steady
from architectures import ARCHITECTURES
from tiny import TASK

EXACT = Machine(torch.device("cpu"), torch.float32)
COARSE = Machine(torch.device("cpu"), torch.bfloat16)
STOOD_IN_FOR = sorted(ARCHITECTURES.keys() - {"albert", "xlnet"})
NO_LIMIT = 2**30


class Trained:
    """A tiny model whose last layer and head are trained by SGD, with dropout, as a stage does."""

    def __init__(self, source: Path, machine: Machine = EXACT, task: Any = TASK) -> None:
        tokenizer = load_tokenizer(str(source))
        model, fresh = load_model(task.auto_class, str(source), tokenizer, 0, **task.config)
        self.task, self.model, self.machine = task, model, machine
        self.examples: list[Example] = task.encode(tiny.make_table(90), tokenizer, 30).examples
        self.collate = partial(task.collate, tokenizer=tokenizer)
        self.reading = Reading(self.collate, task.outputs, machine)
        state = ModelState(model, fresh)
        self.roles = state.roles()
        self.names = self.roles.stacks["layers"][-1] | state.head
        free_only(model, self.names)
        self.start = copy_weights(model, named_weights(model))

    def prefix(self) -> FrozenPrefix:
        self.model.eval()
        batch = self.collate(self.examples[:3])
        found = find_frozen_prefix(self.model, self.roles, lambda: self.reading.outputs_of(self.model, batch))
        assert found is not None
        return found

    def reader(self, shelf: Shelf | None) -> PrefixReader:
        return PrefixReader(self.prefix(), self.reading, self.examples if shelf else (), shelf)

    def train(self, reader: PrefixReader, *, updates: int = 7, done: int = 0, size: int = 8) -> Weights:
        moving = Moving(
            (Group(tuple(sorted(self.names)), 0.1, 0.0),),
            OptimizerSettings("sgd", {"momentum": 0.0, "nesterov": False}),
        )
        optimizer = make_optimizer(moving, named_weights(self.model))
        turns = Turns(steady(moving.selected), self.names, self.model, optimizer)
        series = Updates(self.examples, 24, size, 0, self.collate)
        steps = training_steps(
            self.model,
            optimizer,
            series.after(done),
            reader.loss(self.task.summed_loss),
            self.machine,
            still=lambda update: turns.at(update, 0.0),
            multiplier=lambda update: 1.0,
            clip=make_clip(None),
            seed=0,
            done=done,
        )
        with reader.running():
            for _ in range(done, updates):
                next(steps)
        return copy_weights(self.model, named_weights(self.model))


def assert_same(one: Weights, other: Weights) -> None:
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close(one: Weights, other: Weights, allowed: float) -> None:
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < allowed


@pytest.mark.parametrize("name", STOOD_IN_FOR)
def test_kept_and_computed_training_agree_to_rounding(name: str, tmp_path: Path) -> None:
    source = ARCHITECTURES[name].save(tmp_path)
    kept, computed = Trained(source), Trained(source)
    reader = kept.reader(Shelf(NO_LIMIT))
    one, other = kept.train(reader), computed.train(computed.reader(None))
    assert reader.num_computed == len(kept.examples)
    assert reader.num_read == 7 * 24 - (24 - len(kept.examples) % 24) % 24
    assert_close(one, other, 1e-5)
    moved = {name for name in one if not torch.equal(one[name], kept.start[name])}
    assert moved <= kept.names  # what stands still keeps its bits
    assert moved & kept.roles.stacks["layers"][-1]


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_both_draw_the_same_dropout(name: str, tmp_path: Path) -> None:
    """Were the frozen layers in training mode, their dropout would change what the layer above learns."""
    source = ARCHITECTURES[name].save(tmp_path)
    kept, other = Trained(source), Trained(source)
    with dropout_at(kept.model, 0.5), dropout_at(other.model, 0.5):
        assert_close(kept.train(kept.reader(Shelf(NO_LIMIT))), other.train(other.reader(None)), 1e-5)


def test_in_bfloat16_both_agree_to_its_rounding(bert: Path) -> None:
    kept, other = Trained(bert, COARSE), Trained(bert, COARSE)
    shelf = Shelf(NO_LIMIT)
    one, two = kept.train(kept.reader(shelf)), other.train(other.reader(None))
    moved = torch.cat([(one[name] - kept.start[name]).abs().flatten() for name in one])
    apart = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert float(apart.max()) < 0.1 * float(moved.max())
    num_tokens = sum(example.num_tokens for example in kept.examples)
    assert shelf.num_bytes == num_tokens * tiny.WIDTH * 2


def test_a_decoder_is_kept_by_texts_however_they_are_packed(llama: Path) -> None:
    task = Writing(("text",))
    kept, computed = Trained(llama, task=task), Trained(llama, task=task)
    reader = kept.reader(Shelf(NO_LIMIT))
    assert_close(kept.train(reader, size=24), computed.train(computed.reader(None), size=24), 1e-5)
    assert reader.num_read > 0


def test_two_sides_are_kept_by_rows(tmp_path: Path) -> None:
    task = Writing(("source", "target"), is_two_sided=True, prompt="{source}")
    source = ARCHITECTURES["t5"].save(tmp_path)
    tokenizer = load_tokenizer(str(source))
    model, _ = load_model(task.auto_class, str(source), tokenizer, 0, **task.config)
    table = tiny.make_table(12).select(source="text", target="label")
    examples = task.encode(table, tokenizer, 30).examples
    roles = ModelState(model, frozenset()).roles()
    free_only(model, roles.stacks["decoder.layers"][-1])
    reading = Reading(partial(task.collate, tokenizer=tokenizer), task.outputs, EXACT)
    batches = [reading.collate(examples[start : start + 4]) for start in (0, 4, 8)]
    model.eval()
    prefix = find_frozen_prefix(model, roles, lambda: reading.outputs_of(model, batches[0]))
    assert prefix is not None
    assert len(prefix.chains) == 2
    expected = [reading.outputs_of(model, batch) for batch in batches]
    reader = PrefixReader(prefix, reading, examples, Shelf(NO_LIMIT))
    model.train()
    loss = reader.loss(lambda model, batch: reading.outputs_of(model, batch))
    with reader.running(), dropout_at(model, 0.0):
        found = [loss(model, batch) for batch in batches]
    assert reader.num_read == 12
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    source = tiny.save_bert(tmp_path, dropout=0.0)
    ends = []
    for size in (24, 5):
        trained = Trained(source)
        ends.append(trained.train(trained.reader(Shelf(NO_LIMIT)), size=size))
    assert_close(*ends, 1e-6)


def test_what_lies_on_disk_is_the_same_to_the_bit(bert: Path) -> None:
    ends, shelves = [], [Shelf(NO_LIMIT), Shelf(0), Shelf(50_000)]
    for shelf in shelves:
        trained = Trained(bert)
        ends.append(trained.train(trained.reader(shelf)))
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])
    total = shelves[0].num_bytes
    assert [shelf.in_memory for shelf in shelves[:2]] == [total, 0]
    assert [shelf.on_disk for shelf in shelves[:2]] == [0, total]
    assert 0 < shelves[2].in_memory < total
    assert shelves[2].num_bytes == total


def test_a_disk_without_room_is_named(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    trained = Trained(bert)
    with pytest.raises(InputError, match=r"absent has no room .* set cache: false"):
        trained.train(trained.reader(Shelf(0)))


def test_a_resume_reads_the_same_bits(bert: Path) -> None:
    """What was kept is gone, and the rows that are asked for first are others."""
    alone, before = Trained(bert), Trained(bert)
    end = alone.train(alone.reader(Shelf(NO_LIMIT)))
    before.train(before.reader(Shelf(NO_LIMIT)), updates=2)
    assert_same(before.train(before.reader(Shelf(NO_LIMIT)), done=2), end)


def test_equal_prefixes_read_each_others_and_others_nothing(bert: Path) -> None:
    trained, kept = Trained(bert), Activations()
    first = trained.reader(kept.shelf(trained.prefix().fingerprint()))
    trained.train(first)
    again = trained.reader(kept.shelf(trained.prefix().fingerprint()))
    trained.train(again)  # the layer above has moved
    assert (first.num_computed, again.num_computed) == (len(trained.examples), 0)
    weights = named_weights(trained.model)
    with torch.no_grad():
        weights[min(trained.roles.stacks["layers"][0])].add_(1e-6)
    changed = trained.reader(kept.shelf(trained.prefix().fingerprint()))
    trained.train(changed)
    assert changed.num_computed == len(trained.examples)


def test_a_new_prefix_takes_the_room_of_the_longest_unused() -> None:
    kept = Activations(limit=100)
    call = read_call({"input_ids": torch.ones(1, 4, dtype=torch.long)})
    assert call is not None
    block = cut_block(call, (torch.zeros(1, 4, 4),), torch.float32)
    shelves = {name: kept.shelf(name) for name in (b"one", b"two")}
    shelves[b"one"].put(b"", block)  # 64 bytes
    assert kept.shelf(b"two") is shelves[b"two"]
    kept.shelf(b"three")
    assert kept.shelf(b"one") is not shelves[b"one"]


def test_scores_are_kept_as_well(bert: Path) -> None:
    trained = Trained(bert)
    reader = trained.reader(Shelf(NO_LIMIT))
    batch = trained.collate(trained.examples[:5])
    trained.model.eval()
    expected = trained.task.outputs(trained.model, batch)
    with reader.running():
        for number in (1, 2, 3):
            with reader.scoring():
                torch.testing.assert_close(trained.task.outputs(trained.model, batch), expected)
            assert (reader.num_computed, reader.num_read) == (5, 5 * (number - 1))
        trained.task.outputs(trained.model, batch)  # measured, not scored
    assert reader.num_read == 10


def texts(**inputs: Sequence[Sequence[int]]) -> list[tuple[int, int, int]] | None:
    call = read_call({name: torch.tensor(rows) for name, rows in inputs.items()})
    return None if call is None else [(text.row, text.start, text.length) for text in call.texts]


def test_texts_are_found_wherever_padding_stands() -> None:
    ids = [[5, 6, 7], [5, 6, 0]]
    assert texts(input_ids=ids, attention_mask=[[1, 1, 1], [1, 1, 0]]) == [(0, 0, 3), (1, 0, 2)]
    assert texts(input_ids=ids, attention_mask=[[1, 1, 1], [0, 1, 1]]) == [(0, 0, 3), (1, 1, 2)]
    assert texts(input_ids=ids, attention_mask=[[1, 1, 1], [1, 0, 1]]) is None
    assert texts(input_ids=ids) == [(0, 0, 3), (1, 0, 3)]
    assert texts(input_ids=ids, position_ids=[[0, 1, 0], [0, 1, 2]]) == [(0, 0, 2), (0, 2, 1), (1, 0, 3)]
    assert texts(input_ids=ids, inputs_of_another_kind=ids) is None


def keys(**inputs: Sequence[Sequence[int]]) -> list[bytes]:
    call = read_call({name: torch.tensor(rows) for name, rows in inputs.items()})
    assert call is not None
    return [text.key for text in call.texts]


def test_a_key_is_of_all_that_bears_on_a_text_and_of_nothing_else() -> None:
    mask = {"attention_mask": [[1, 1, 0]]}
    key = keys(input_ids=[[5, 6, 0]], **mask)
    assert keys(input_ids=[[5, 6, 9]], **mask) == key  # behind the mask
    assert keys(input_ids=[[5, 6]], attention_mask=[[1, 1]]) == key
    assert keys(input_ids=[[0, 5, 6]], attention_mask=[[0, 1, 1]]) == key
    assert keys(input_ids=[[5, 7, 0]], **mask) != key
    assert keys(input_ids=[[5, 6, 0]], token_type_ids=[[0, 1, 0]], **mask) not in (
        key,
        keys(input_ids=[[5, 6, 0]], token_type_ids=[[0, 0, 0]], **mask),
    )
    two_sided = keys(input_ids=[[5, 6, 0]], decoder_input_ids=[[0, 7, 0, 0]], **mask)
    assert keys(input_ids=[[5, 6]], attention_mask=[[1, 1]], decoder_input_ids=[[0, 7, 0]]) == two_sided
    assert keys(input_ids=[[5, 6, 0]], decoder_input_ids=[[0, 8, 0, 0]], **mask) != two_sided


def test_a_missing_text_is_never_made_up() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6, 0], [7, 0, 0]]), "position_ids": torch.tensor([[0, 1, 0], [0, 0, 1]])}
    call = read_call(inputs)
    assert call is not None
    states = torch.arange(18.0).view(2, 3, 3)
    block = cut_block(call, (states,), torch.float32)
    found = look_up(call, [block])
    assert found is not None
    served: Tensor = lay_out(call, found, torch.device("cpu"))[0]
    assert torch.equal(served, states)
    others = read_call({**inputs, "input_ids": torch.tensor([[5, 6, 0], [8, 0, 0]])})
    assert others is not None
    assert look_up(others, [block]) is None
    filler = read_call({"input_ids": torch.tensor([[5, 6, 0, 0, 0]]), "position_ids": torch.tensor([[0, 1, 0, 1, 2]])})
    assert filler is not None  # a longer rest than any row had
    found = look_up(filler, [block])
    assert found is not None
    assert torch.equal(lay_out(filler, found, torch.device("cpu"))[0][0, :2], states[0, :2])


def test_two_passes_over_a_batch_run_the_layers_once(bert: Path) -> None:
    trained = Trained(bert)
    reader = trained.reader(None)
    ran: list[nn.Module] = []
    trained.model.bert.encoder.layer[0].output.register_forward_hook(lambda module, *_: ran.append(module))

    def twice(model: nn.Module, batch: Batch) -> Tensor:
        return trained.task.summed_loss(model, batch) + trained.task.summed_loss(model, batch)

    trained.model.train()
    with reader.running():
        reader.loss(twice)(trained.model, trained.collate(trained.examples[:4]))
    assert len(ran) == 1


def test_more_blocks_on_disk_than_a_process_may_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "SEGMENT", 64 * ALLOCATIONGRANULARITY)
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    try:
        shelf = Shelf(0)
        sizes = [*range(1, 400), 20_000, 7]  # one is larger than what is mapped at once
        blocks = []
        for size in sizes:
            hidden = (torch.full((size, 8), float(size)), torch.full((size, 3), -float(size), dtype=torch.bfloat16))
            starts = ((0, size), (0, size))
            block = Block((b"a",), hidden, starts, (torch.float32, torch.bfloat16))
            blocks.append(shelf.put(size.to_bytes(4, "little"), block))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    assert (shelf.in_memory, shelf.on_disk) == (0, sum(sizes) * (8 * 4 + 3 * 2))
    for size, block in zip(sizes, blocks, strict=True):
        assert block is shelf.get(size.to_bytes(4, "little")) or size == 7
        assert torch.equal(block.hidden[0], torch.full((size, 8), float(size)))
        assert torch.equal(block.hidden[1], torch.full((size, 3), -float(size), dtype=torch.bfloat16))
