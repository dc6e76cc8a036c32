"""Roles over tiny models of every family, built from their configs."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from alloytune.models.bottleneck import BottleneckConfig
from alloytune.models.roles import Roles, find_roles
from alloytune.models.targets import linear_targets, output_targets
from alloytune.models.tree import canonical_name

SMALL = {"vocab_size": 40}
PLAIN = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    **SMALL,
}
DECODER = {**PLAIN, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
OPT = {k: v for k, v in PLAIN.items() if k != "intermediate_size"} | {"ffn_dim": 24}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": 0, **SMALL}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 32, **SMALL}
XLNET = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, **SMALL}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0, **SMALL}
BART = {
    "d_model": 16,
    "max_position_embeddings": 32,
    **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in [("layers", 2), ("ffn_dim", 24)]},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **SMALL,
}
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "type_vocab_size": 0,
    "position_biased_input": False,
    **PLAIN,
}


@dataclass(frozen=True)
class Family:
    """What is known of a model: words that end the module names of a role in the bottom layer, and the rest by name."""

    model: str
    config: str
    settings: dict[str, Any]
    parts: dict[str, str]
    head: set[str]
    embeddings: set[str]
    pooler: frozenset[str] = frozenset()
    layers: int = 2
    remarks: tuple[str, ...] = ()
    idle: frozenset[str] = frozenset()


def parts(query: str, key: str, value: str, output: str, up: str, down: str, gate: str = "") -> dict[str, str]:
    found = {f"attention.{k}": v for k, v in {"query": query, "key": key, "value": value, "output": output}.items()}
    return found | {f"mlp.{k}": v for k, v in {"up": up, "down": down, "gate": gate}.items() if v}


BERT_PARTS = parts(
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)
LLAMA_PARTS = parts("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")
BART_PARTS = parts("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
NEOX_PARTS = parts(*["query_key_value"] * 3, "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
GPT2_PARTS = parts(*["attn.c_attn"] * 3, "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
T5_PARTS = parts("Attention.q", "Attention.k", "Attention.v", "Attention.o", "wi", "wo")
GATED_T5_PARTS = T5_PARTS | {"mlp.up": "wi_1", "mlp.gate": "wi_0"}
DENSE_HEAD = {
    f"{module}.{kind}" for module in ("classifier.dense", "classifier.out_proj") for kind in ("weight", "bias")
}
BART_HEAD = {name.replace("classifier", "classification_head") for name in DENSE_HEAD}
FUSED = "one weight for attention.key, attention.query, attention.value"


def bert_embeddings(body: str, *extra: str) -> set[str]:
    tables = ("word", "position", "token_type")
    names = {f"{table}_embeddings.weight" for table in tables} | {"LayerNorm.weight", "LayerNorm.bias"}
    return {f"{body}.embeddings.{name}" for name in names} | {f"{body}.{name}" for name in extra}


def linear(*modules: str) -> set[str]:
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


FAMILIES = {
    "bert": Family(
        *("BertForSequenceClassification", "BertConfig", PLAIN, BERT_PARTS),
        *(linear("classifier"), bert_embeddings("bert")),
        pooler=frozenset(linear("bert.pooler.dense")),
    ),
    "roberta": Family(
        *("RobertaForSequenceClassification", "RobertaConfig", PLAIN, BERT_PARTS),
        *(DENSE_HEAD, bert_embeddings("roberta")),
    ),
    "electra": Family(
        *("ElectraForSequenceClassification", "ElectraConfig", PLAIN | {"embedding_size": 8}, BERT_PARTS, DENSE_HEAD),
        bert_embeddings("electra", "embeddings_project.weight", "embeddings_project.bias"),
    ),
    "distilbert": Family(
        *("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL),
        parts("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
        linear("pre_classifier", "classifier"),
        bert_embeddings("distilbert") - {"distilbert.embeddings.token_type_embeddings.weight"},
    ),
    "albert": Family(
        *("AlbertForSequenceClassification", "AlbertConfig", PLAIN | {"embedding_size": 8}),
        parts("query", "key", "value", "attention.dense", "ffn", "ffn_output"),
        linear("classifier"),
        bert_embeddings("albert", *linear("encoder.embedding_hidden_mapping_in")),
        pooler=frozenset(linear("albert.pooler")),
        layers=1,
        remarks=("the 2 layers of the model share the weights of 1",),
    ),
    "deberta-v2": Family(
        *("DebertaV2ForSequenceClassification", "DebertaV2Config", DEBERTA | {"conv_kernel_size": 3}),
        BERT_PARTS | {f"attention.{part}": f"self.{part}_proj" for part in ("query", "key", "value")},
        linear("pooler.dense", "classifier"),
        {
            *linear("deberta.embeddings.LayerNorm"),
            "deberta.embeddings.word_embeddings.weight",
            "deberta.encoder.rel_embeddings.weight",
        },
        idle=frozenset(linear("deberta.encoder.conv.conv")),
        remarks=("deberta.encoder.conv.conv.weight: in no role",),
    ),
    "modernbert": Family(
        *("ModernBertForSequenceClassification", "ModernBertConfig", PLAIN | {"pad_token_id": 0}),
        parts("Wqkv", "Wqkv", "Wqkv", "attn.Wo", "Wi", "mlp.Wo", "Wi"),
        {"head.dense.weight", "head.norm.weight", *linear("classifier")},
        {"model.embeddings.tok_embeddings.weight", "model.embeddings.norm.weight"},
        remarks=(f"wqkv: {FUSED}", "wi: one weight for mlp.gate, mlp.up"),
    ),
    "xlnet": Family(
        *("XLNetForSequenceClassification", "XLNetConfig", XLNET),
        parts("rel_attn.q", "rel_attn.k", "rel_attn.v", "rel_attn.o", "layer_1", "layer_2"),
        linear("sequence_summary.summary", "logits_proj"),
        {"transformer.mask_emb", "transformer.word_embedding.weight"},
    ),
    "gpt2": Family(
        *("GPT2ForSequenceClassification", "GPT2Config", GPT2, GPT2_PARTS),
        *({"score.weight"}, {"transformer.wte.weight", "transformer.wpe.weight"}),
        remarks=(f"c_attn: {FUSED}",),
    ),
    "gpt-neox": Family(
        *("GPTNeoXForSequenceClassification", "GPTNeoXConfig", PLAIN | {"pad_token_id": 0}, NEOX_PARTS),
        *({"score.weight"}, {"gpt_neox.embed_in.weight"}),
        remarks=(f"query_key_value: {FUSED}",),
    ),
    "opt": Family(
        *("OPTForSequenceClassification", "OPTConfig", OPT | {"word_embed_proj_dim": 8}, BART_PARTS, {"score.weight"}),
        {f"model.decoder.{name}.weight" for name in ("embed_tokens", "embed_positions", "project_in", "project_out")},
    ),
    "t5": Family(
        *("T5ForSequenceClassification", "T5Config", T5 | {"feed_forward_proj": "gated-gelu"}, GATED_T5_PARTS),
        *(BART_HEAD, {"transformer.shared.weight"}),
        layers=4,
        remarks=("tied to transformer.shared.weight",),
    ),
    "bart": Family(
        *("BartForSequenceClassification", "BartConfig", BART, BART_PARTS, BART_HEAD),
        {
            "model.shared.weight",
            *(f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")),
            *linear(*(f"model.{side}.layernorm_embedding" for side in ("encoder", "decoder"))),
        },
        layers=4,
    ),
    "bert, masked words": Family(
        *("BertForMaskedLM", "BertConfig", PLAIN, BERT_PARTS),
        {"cls.predictions.bias", *linear("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm")},
        bert_embeddings("bert"),
        remarks=("cls.predictions.decoder.weight: tied to bert.embeddings.word_embeddings.weight",),
    ),
    "gpt2, words, tied": Family(
        *("GPT2LMHeadModel", "GPT2Config", GPT2, GPT2_PARTS),
        *(set(), {"transformer.wte.weight", "transformer.wpe.weight"}),
        remarks=("lm_head.weight: tied to transformer.wte.weight",),
    ),
    "gpt-neox, words, untied": Family(
        *("GPTNeoXForCausalLM", "GPTNeoXConfig", PLAIN, NEOX_PARTS),
        *(set(), {"gpt_neox.embed_in.weight", "lm_head.weight"}),
    ),
    "mixtral, experts in one tensor": Family(
        *("MixtralForCausalLM", "MixtralConfig", DECODER | {"num_local_experts": 3}),
        LLAMA_PARTS | {"mlp.up": "gate_up_proj", "mlp.gate": "gate_up_proj"},
        *(set(), {"model.embed_tokens.weight", "lm_head.weight"}),
        remarks=("gate_up_proj: one weight for mlp.gate, mlp.up",),
    ),
    "t5, words, tied": Family(
        *("T5ForConditionalGeneration", "T5Config", T5, T5_PARTS, set(), {"shared.weight"}),
        layers=4,
        remarks=("lm_head.weight: tied to shared.weight",),
    ),
    "xlm, layers in four lists": Family(
        *("XLMModel", "XLMConfig", {"emb_dim": 16, "n_layers": 2, "n_heads": 2, **SMALL}),
        parts("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
        set(),
        {"position_embeddings.weight", "embeddings.weight", *linear("layer_norm_emb")},
    ),
    "bert, bare": Family(
        *("BertModel", "BertConfig", PLAIN, BERT_PARTS, set()),
        {name.removeprefix("bert.") for name in bert_embeddings("bert")},
        pooler=frozenset(linear("pooler.dense")),
    ),
    **{
        name.lower(): Family(
            *(f"{name}ForSequenceClassification", f"{name}Config", DECODER, LLAMA_PARTS),
            *({"score.weight"}, {"model.embed_tokens.weight"}),
        )
        for name in ("Llama", "Qwen2", "Qwen3", "Gemma3Text", "Mistral")
    },
}


def build(family: Family) -> nn.Module:
    config = getattr(transformers, family.config)(**family.settings)
    model: nn.Module = getattr(transformers, family.model)(config)
    return model


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def modules_of(names: frozenset[str]) -> set[str]:
    return {name.removesuffix(".weight").removesuffix(".bias") for name in names}


def test_roles_of_every_family(family: Family) -> None:
    model = build(family)
    roles = find_roles(model)
    members = roles.members

    assert list(roles.shapes) == [name for name, _ in model.named_parameters()]
    assert members["all"] == set(roles.shapes)
    assert members.get("head", set()) == family.head
    assert members["embeddings"] == family.embeddings
    assert members.get("pooler", set()) == family.pooler
    assert {role for role in members if role.startswith(("attention.", "mlp."))} == set(family.parts)
    for role, word in family.parts.items():
        places = modules_of(members[role])
        assert all(place.endswith(word) for place in places), role
        crossed = sum(any(word in name.lower() for word in ("encdec", "encoder_attn")) for name in places)
        assert len(places) == family.layers + crossed, role
    for remark in family.remarks:
        assert any(remark in said for said in roles.shared), (remark, roles.shared)


def test_layers_partition_what_is_in_layers(family: Family) -> None:
    roles = find_roles(build(family))
    layers = roles.stacks["layers"]

    assert len(layers) == family.layers
    assert sum(map(len, layers)) == len(roles.members["layers"])
    assert frozenset().union(*layers) == roles.members["layers"]
    for number, layer in enumerate(layers):
        assert {int(part) for name in layer for part in name.split(".") if part.isdigit()} >= {number % 2}


def test_every_weight_has_a_role(family: Family) -> None:
    members = find_roles(build(family)).members
    named = frozenset().union(*(names for role, names in members.items() if role not in ("all", "bias")))

    assert members["all"] - named == family.idle


def test_norms_and_biases(family: Family) -> None:
    model = build(family)
    members = find_roles(model).members
    norms = {name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}

    assert modules_of(members["norm"]) == {name for name in norms if list(model.get_submodule(name).parameters())}
    assert members["norm"].isdisjoint(members.get("attention", set()) | members["mlp"])
    assert {name for name in members["all"] if name.endswith("bias")} == members.get("bias", set())


def test_the_layer_that_writes_words_is_of_the_embeddings_and_no_head() -> None:
    model = build(FAMILIES["t5, words, tied"])
    assert isinstance(model.lm_head, nn.Linear)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())

    members = find_roles(model).members
    assert members["head"] == set()
    assert members["embeddings"] == {"shared.weight", "lm_head.weight"}


def test_two_sides() -> None:
    roles = find_roles(build(FAMILIES["t5"]))

    assert [len(roles.stacks[f"{side}.layers"]) for side in ("encoder", "decoder")] == [2, 2]
    assert roles.stacks["layers"] == roles.stacks["encoder.layers"] + roles.stacks["decoder.layers"]
    assert roles.members["encoder"].isdisjoint(roles.members["decoder"])
    assert roles.members["embeddings"].isdisjoint(roles.members["encoder"] | roles.members["decoder"])
    assert modules_of(roles.members["cross"]) >= {"transformer.decoder.block.0.layer.1.EncDecAttention.q"}
    assert roles.members["cross"] < roles.members["decoder"]
    assert {name for name in roles.members["attention"] if "relative_attention_bias" in name}


def test_one_sided_models_have_no_sides() -> None:
    members = find_roles(build(FAMILIES["bert"])).members

    assert not {"encoder", "decoder", "cross"} & set(members)


def test_layers_of_torch_recurrent_networks() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.rnn = nn.GRU(4, 4, num_layers=3)
            self.norm = nn.LayerNorm(4)
            self.head = nn.Linear(4, 2)

    roles = find_roles(Reader())

    assert [len(layer) for layer in roles.stacks["layers"]] == [4, 4, 4]
    assert roles.members["head"] == linear("head")
    assert roles.members["embeddings"] == {"embed.weight"}


def test_two_layers_that_are_one_module_count_once() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.norm = nn.Linear(4, 8), nn.Linear(8, 4), nn.LayerNorm(4)

    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = Block()
            self.layers = nn.ModuleList([block, block, Block()])

    roles = find_roles(Looped())

    assert [sorted(layer)[0] for layer in roles.stacks["layers"]] == ["layers.0.down.bias", "layers.2.down.bias"]
    assert roles.members["mlp.up"] == linear("layers.0.up", "layers.2.up")


def test_mlp_as_wide_inside_as_outside() -> None:
    settings = PLAIN | {"intermediate_size": 16}
    roles = find_roles(transformers.BertModel(transformers.BertConfig(**settings)))

    assert modules_of(roles.members["mlp.up"]) == {f"encoder.layer.{i}.intermediate.dense" for i in range(2)}
    assert modules_of(roles.members["mlp.down"]) == {f"encoder.layer.{i}.output.dense" for i in range(2)}


def adapted(name: str) -> tuple[Roles, nn.Module]:
    """Return a model's roles, and the model with LoRA on every linear layer inside its layers."""
    model = build(FAMILIES[name])
    before = find_roles(model)
    targets = linear_targets(model, before.members["attention"] | before.members["mlp"])
    return before, inject_adapter_in_model(LoraConfig(r=2, target_modules=targets), model)


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "gpt2", "qwen3", "t5"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_weights_keep_their_names_and_roles_under_an_adapter(name: str) -> None:
    before, model = adapted(name)
    after = find_roles(model)
    adapter = after.members["adapter"]

    assert adapter == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert {role: names for role, names in after.members.items() if "adapter" not in role} == before.members
    in_layers = after.stacks.pop("adapter.layers")
    assert after.stacks == before.stacks
    assert frozenset().union(*in_layers) == adapter
    for number, names in enumerate(in_layers):  # each hangs on a weight of its layer
        hosts = {canonical_name(name).partition(".lora_")[0] for name in names}
        assert hosts <= modules_of(before.stacks["layers"][number])
    assert {name: shape for name, shape in after.shapes.items() if name not in adapter} == before.shapes
    assert {canonical_name(name) for name, _ in model.named_parameters()} == set(after.shapes)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_one_adapter_over_another() -> None:
    before, model = adapted("llama")
    config = BottleneckConfig(target_modules=output_targets(model, before, before.members["all"]))
    after = find_roles(inject_adapter_in_model(config, model, "second"))

    assert {role: names for role, names in after.members.items() if "adapter" not in role} == before.members
    kinds = {part for name in after.members["adapter"] for part in name.split(".") if "_" in part}
    assert {"lora_A", "lora_B", "bottleneck_down", "bottleneck_up"} <= kinds


def test_roles_inside_a_peft_model_are_the_same_under_its_prefix() -> None:
    model = build(FAMILIES["bert"])
    before = find_roles(model).members
    after = find_roles(get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))).members

    assert after.keys() - before.keys() == {"adapter", "adapter.default"}
    for role, names in before.items():
        assert {name.removeprefix("base_model.model.") for name in after[role]} == names


def test_targets_are_the_linear_layers_of_a_selection() -> None:
    model = build(FAMILIES["gpt2"])
    roles = find_roles(model)

    assert linear_targets(model, roles.members["attention"]) == [
        f"transformer.h.{i}.attn.{name}" for i in range(2) for name in ("c_attn", "c_proj")
    ]
    assert linear_targets(model, roles.members["embeddings"] | roles.members["norm"]) == []
    assert linear_targets(model, roles.members["head"]) == ["score"]
    assert output_targets(model, roles, roles.stacks["layers"][1]) == [
        "transformer.h.1.attn.c_proj",
        "transformer.h.1.mlp.c_proj",
    ]


def test_a_tied_output_layer_is_no_target() -> None:
    model = build(FAMILIES["gpt2, words, tied"])

    assert "lm_head" not in linear_targets(model, find_roles(model).members["all"])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_targets_of_an_adapted_model_are_the_wrapped_layers() -> None:
    before, model = adapted("gpt2")
    plain = build(FAMILIES["gpt2"])

    assert linear_targets(model, before.members["mlp"]) == linear_targets(plain, before.members["mlp"])


def test_finding_roles_changes_nothing(family: Family) -> None:
    model = build(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_roles(model)

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_canonical_name() -> None:
    assert canonical_name("a.base_layer.weight") == "a.weight"
    assert canonical_name("a.base_layer.base_layer.weight") == "a.weight"
    assert canonical_name("a.base_layers.weight") == "a.base_layers.weight"
    assert canonical_name("a.lora_A.default.weight") == "a.lora_A.default.weight"
