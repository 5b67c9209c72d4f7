"""The Hugging Face backend: config fields found by rebuilding, refusals, and what reloads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from prunec.backends import modeling_prunec
from prunec.backends.hf_attributes import attributes
from prunec.backends.hf_build import builder, shapes
from prunec.backends.hf_emit import CODE, auto_map, emit_per_layer, emit_uniform, own_class
from prunec.backends.hf_families import families
from prunec.backends.hf_fields import Family
from prunec.backends.hf_fit import UniformConfig, allowed_counts, fit, holdable
from prunec.backends.hf_program import same_buffers, same_program
from prunec.backends.hf_section import Section, per_layer
from prunec.backends.interpreter import execute
from prunec.backends.safetensors_writer import Entry, Sliced
from prunec.frontends.hf import real_buffers
from prunec.frontends.torch_hf import trace_hf
from prunec.ir.axes import Selection
from prunec.ir.diagnostics import Diagnostic, PrunecError
from prunec.ir.dialects.aten import ATEN
from prunec.ir.graph import Graph
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling, Group
from prunec.passes.dce import dce
from prunec.passes.rewrite import Rewritten, rewrite

SIZES = {
    "vocab_size": 131,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}
FFN = {"intermediate_size": 80}
NO_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama() -> Any:
    return transformers.LlamaConfig(**SIZES, **FFN, num_key_value_heads=2)


def tied_llama() -> Any:
    return transformers.LlamaConfig(**SIZES, **FFN, num_key_value_heads=2, tie_word_embeddings=True)


def mistral() -> Any:
    return transformers.MistralConfig(**SIZES, **FFN, num_key_value_heads=2)


def gemma3() -> Any:
    kinds = ["sliding_attention", "full_attention"]
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return transformers.Gemma3TextConfig(
        **SIZES | heads, **FFN, layer_types=kinds, query_pre_attn_scalar=16, sliding_window=8
    )


def bert() -> Any:
    return transformers.BertConfig(**SIZES, **FFN)


def gpt2() -> Any:
    return transformers.GPT2Config(
        vocab_size=131, n_embd=48, n_layer=2, n_head=6, n_positions=64, **NO_TOKENS
    )


def opt() -> Any:
    return transformers.OPTConfig(**SIZES, **NO_TOKENS, word_embed_proj_dim=48, ffn_dim=80)


def neox() -> Any:
    return transformers.GPTNeoXConfig(**SIZES, **FFN, **NO_TOKENS)


def phi3() -> Any:
    return transformers.Phi3Config(**SIZES, **FFN, **NO_TOKENS, num_key_value_heads=2)


def t5() -> Any:
    return transformers.T5Config(
        vocab_size=131, d_model=48, d_kv=8, d_ff=80, num_layers=2, num_heads=6
    )


CLASSES: dict[Callable[[], Any], Any] = {
    llama: transformers.LlamaForCausalLM,
    tied_llama: transformers.LlamaForCausalLM,
    mistral: transformers.MistralForCausalLM,
    gemma3: transformers.Gemma3ForCausalLM,
    bert: transformers.BertModel,
    gpt2: transformers.GPT2LMHeadModel,
    opt: transformers.OPTForCausalLM,
    neox: transformers.GPTNeoXForCausalLM,
    phi3: transformers.Phi3ForCausalLM,
    t5: transformers.T5ForConditionalGeneration,
}


@dataclass(frozen=True)
class Case:
    """A tiny model with everything that the pipeline would hand to the backend."""

    make: Callable[[], Any]

    @cached_property
    def config(self) -> Any:
        config = self.make()
        config.architectures = [self.architecture.__name__]
        return config

    @property
    def architecture(self) -> Any:
        return CLASSES[self.make]

    @cached_property
    def family(self) -> Family:
        return Family(self.config, builder(self.architecture))

    @cached_property
    def coupling(self) -> Coupling:
        return couple(trace(self.family.build(self.config)), ATEN)

    @property
    def axes(self) -> Mapping[str, Any]:
        return {n: p.type.axes for n, p in self.coupling.graph.parameters.items()}

    @cached_property
    def model(self) -> Any:
        torch.manual_seed(0)
        return self.architecture(self.make()).eval()

    def groups(self, role: str) -> list[Group]:
        found = [g for g in self.coupling.groups if g.role == role]
        assert found, f"no group of role {role}"
        return found

    def counts(self, role: str, *by_layer: int) -> dict[str, int]:
        """A count for each group of a role, cycling through `by_layer`."""
        return {g.name: by_layer[i % len(by_layer)] for i, g in enumerate(self.groups(role))}

    def rewritten(self, counts: Mapping[str, int]) -> Rewritten:
        sizes = {g.name: g.size for g in self.coupling.groups}
        rng = np.random.default_rng(0)
        kept = {
            name: Selection(np.sort(rng.permutation(sizes[name])[:count]))
            for name, count in counts.items()
        }
        found = rewrite(self.coupling, kept)
        return Rewritten(dce(found.graph), found.kept)

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        buffers = real_buffers(self.config)
        named = self.model.state_dict()
        return buffers | {name: t.detach().numpy() for name, t in named.items()}

    def entries(self, rewritten: Rewritten) -> list[Entry]:
        stored = {n: t.numpy() for n, t in self.model.state_dict().items()}
        kept = {self.family.tied.get(n, n): dims for n, dims in rewritten.kept.items()}
        found = []
        for name, array in stored.items():
            if self.family.tied[name] == name:
                sliced = Sliced(array, kept.get(name, {}))
                found.append(Entry(name, array.dtype, sliced.shape, lambda s=sliced: s))
        return found

    def run(self, rewritten: Rewritten, feeds: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """The first output of the rewritten program, by the executor."""
        weights = {
            name: array[np.ix_(*[dims.get(d, np.arange(n)) for d, n in enumerate(array.shape)])]
            for name, array in self.arrays.items()
            for dims in [rewritten.kept.get(name, {})]
        }
        [(_, found)] = list(next(iter(execute(rewritten.graph, weights, [feeds]))).items())[:1]
        return np.asarray(found)


_CASES: dict[Callable[[], Any], Case] = {}


def case(make: Callable[[], Any]) -> Case:
    return _CASES.setdefault(make, Case(make))


def trace(model: torch.nn.Module) -> Graph:
    return trace_hf(model).graph


def tokens(make: Callable[[], Any], batch: int = 2, length: int = 9) -> dict[str, Any]:
    ids = np.random.default_rng(1).integers(3, 131, (batch, length))
    found = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return found | ({"decoder_input_ids": ids} if make is t5 else {})


def output(model: Any, feeds: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found = model(**{name: torch.as_tensor(value) for name, value in feeds.items()})
    return np.asarray(found[0])


def fitted(make: Callable[[], Any], counts: Mapping[str, int]) -> UniformConfig:
    found = fit(case(make).family, case(make).axes, counts)
    assert isinstance(found, UniformConfig), found
    return found


def refusal(make: Callable[[], Any], counts: Mapping[str, int]) -> Diagnostic:
    found = fit(case(make).family, case(make).axes, counts)
    assert isinstance(found, list)
    return found[0]


# -- which field makes which dimension ------------------------------------------------------


def test_fields_of_a_llama_are_found_by_rebuilding() -> None:
    fields = case(llama).family.fields.fields
    layer = "model.layers.0."
    assert {name: moved.value for name, moved in fields.items()} == {
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    assert (layer + "mlp.down_proj.weight", 1) in fields["intermediate_size"].places
    assert (layer + "self_attn.k_proj.weight", 0) in fields["num_key_value_heads"].places
    assert (layer + "self_attn.q_proj.weight", 0) not in fields["num_key_value_heads"].places


@pytest.mark.parametrize(
    ("make", "field", "value"), [(gpt2, "n_inner", 192), (phi3, "head_dim", 8)]
)
def test_sizes_that_the_config_leaves_out_are_filled_in(
    make: Callable[[], Any], field: str, value: int
) -> None:
    """GPT-2 has an empty `n_inner`; Phi-3 has no `head_dim` at all but takes one."""
    assert getattr(case(make).config, field, None) is None
    assert case(make).family.fields.fields[field].value == value


def test_one_layer_of_each_kind_is_enough_to_find_the_fields() -> None:
    config = gemma3()
    config.num_hidden_layers = 6
    config.layer_types = ["sliding_attention"] * 5 + ["full_attention"]
    small = Family(config, builder(transformers.Gemma3ForCausalLM)).small
    assert small.layer_types == ["sliding_attention", "full_attention"]


# -- what a stock config can hold -----------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "role", "count", "fields"),
    [
        (llama, "neuron", 33, {"intermediate_size": (80, 33)}),
        (llama, "query_head", 2, {"num_attention_heads": (6, 4)}),
        (llama, "kv_head", 1, {"num_attention_heads": (6, 3), "num_key_value_heads": (2, 1)}),
        (llama, "hidden", 42, {"hidden_size": (48, 42)}),
        (tied_llama, "hidden", 42, {"hidden_size": (48, 42)}),
        (gemma3, "query_head", 1, {"num_attention_heads": (4, 2)}),
        (bert, "neuron", 33, {"intermediate_size": (80, 33)}),
        (gpt2, "neuron", 33, {"n_inner": (192, 33)}),
        (opt, "neuron", 33, {"ffn_dim": (80, 33)}),
        (neox, "neuron", 33, {"intermediate_size": (80, 33)}),
        (phi3, "query_head", 1, {"num_attention_heads": (6, 2)}),
        (t5, "neuron", 33, {"d_ff": (80, 33)}),
        (t5, "query_head", 4, {"num_heads": (6, 4)}),
    ],
)
def test_one_count_in_every_layer_becomes_fields(
    make: Callable[[], Any], role: str, count: int, fields: dict[str, tuple[int, int]]
) -> None:
    assert fitted(make, case(make).counts(role, count)).fields == fields


def test_two_fields_at_once() -> None:
    counts = case(llama).counts("neuron", 50) | case(llama).counts("query_head", 1)
    assert fitted(llama, counts).fields == {
        "intermediate_size": (80, 50),
        "num_attention_heads": (6, 2),
    }


def test_layers_of_different_size_are_refused_with_the_layout_that_works() -> None:
    found = refusal(llama, case(llama).counts("neuron", 33, 44))
    assert found.code == "P602"
    assert found.where == "model.layers.1.mlp.gate_proj.weight"
    assert "--layout per-layer" in found.help


@pytest.mark.parametrize(("make", "field"), [(bert, "hidden_size"), (gpt2, "n_embd")])
def test_a_family_that_ties_heads_to_the_hidden_size_is_refused(
    make: Callable[[], Any], field: str
) -> None:
    found = refusal(make, case(make).counts("query_head", 4))
    assert found.code == "P603"
    assert field in found.message
    assert "c_attn.bias[0] (144 -> 96)" in found.message or "(48 -> 32)" in found.message
    assert "(stays 48)" in found.message


def test_a_config_class_that_validates_is_quoted() -> None:
    """Llama wants a hidden size that the number of heads divides; 3 heads a group of 2 is 6."""
    found = refusal(llama, case(llama).counts("hidden", 40))
    assert found.code == "P605"
    assert "refuses hidden_size=40" in found.message
    assert "multiple of the number of attention heads" in found.message


@pytest.mark.parametrize(
    ("make", "role", "held"),
    [
        (llama, "neuron", True),
        (llama, "query_head", True),
        (llama, "kv_head", True),
        (bert, "neuron", True),
        (bert, "query_head", False),
        (opt, "query_head", False),
        (gpt2, "query_head", False),
        (neox, "query_head", False),
        (t5, "neuron", True),
    ],
)
def test_what_can_be_held_is_known_before_any_count_is(
    make: Callable[[], Any], role: str, held: bool
) -> None:
    names = [g.name for g in case(make).groups(role)]
    found = holdable(case(make).family, case(make).axes, names)
    assert found.keys() == set(names)
    assert all((reason is None) is held for reason in found.values())


def test_counts_that_divide_the_hidden_size_are_allowed() -> None:
    """12 query heads on 2 key-value heads, hidden 48: 10 heads do not divide it, 8 do."""
    config = transformers.LlamaConfig(
        **SIZES | {"num_attention_heads": 12}, **FFN, num_key_value_heads=2
    )
    family = Family(config, builder(transformers.LlamaForCausalLM))
    coupling = couple(trace(family.build(config)), ATEN)
    axes = {n: p.type.axes for n, p in coupling.graph.parameters.items()}
    names = [g.name for g in coupling.groups if g.role == "query_head"]
    assert list(allowed_counts(family, axes, names)) == [1, 2, 3, 4]
    ffn = [g.name for g in coupling.groups if g.role == "neuron"]
    assert list(allowed_counts(family, axes, ffn)) == list(range(1, 80))
    hidden = [g.name for g in coupling.groups if g.role == "hidden"]
    assert list(allowed_counts(family, axes, hidden)) == [12, 24, 36]


def test_one_field_for_encoder_and_decoder_makes_one_family() -> None:
    names = [g.name for g in case(t5).groups("neuron")]
    assert len(names) == 4
    assert families(case(t5).family, case(t5).axes, names) == [tuple(names)]
    assert families(case(llama).family, case(llama).axes, []) == []


# -- the same computation, not just the same shapes -----------------------------------------


@pytest.mark.parametrize(
    ("make", "role", "count"),
    [
        (llama, "query_head", 1),
        (gemma3, "query_head", 1),
        (bert, "neuron", 33),
    ],
)
def test_the_stock_model_computes_the_pruned_program(
    make: Callable[[], Any], role: str, count: int
) -> None:
    """Also where one query head a group makes the stock code skip the repetition of keys."""
    counts = case(make).counts(role, count)
    found = trace(case(make).family.build(fitted(make, counts).config))
    assert same_program(case(make).rewritten(counts).graph, found) == []


def test_an_attention_scale_that_follows_from_head_dim_is_told() -> None:
    counts = {
        g.name: g.size // 2 for g in case(llama).groups("head_dim")
    }  # pairs of rotary angles, and value dimensions
    config = fitted(llama, counts).config
    assert config.head_dim == 4
    found = same_program(
        case(llama).rewritten(counts).graph, trace(case(llama).family.build(config))
    )
    assert found[0].code == "P607"
    assert "scale=0.5" in found[0].message
    assert "scale=0.35355" in found[0].snippet


def test_an_embedding_scale_that_follows_from_hidden_size_is_told() -> None:
    counts = case(gemma3).counts("hidden", 24)
    config = fitted(gemma3, counts).config
    buffers = real_buffers(config)
    kept = case(gemma3).arrays["model.embed_tokens.embed_scale"]
    [found] = same_buffers({"model.embed_tokens.embed_scale": kept}, buffers)
    assert found.code == "P608"


def test_other_rotary_frequencies_are_told() -> None:
    whole, other = np.array([1.0, 0.1, 0.01]), np.array([1.0, 0.01])
    assert same_buffers({"inv_freq": whole}, {"inv_freq": whole}) == []
    assert same_buffers({"inv_freq": whole[[0, 1]]}, {"inv_freq": other})[0].where == "inv_freq"


def test_another_shape_is_told() -> None:
    counts = case(llama).counts("neuron", 33)
    found = same_program(case(llama).rewritten(counts).graph, case(llama).coupling.graph)
    assert found[0].code == "P606"
    assert found[0].where.endswith("gate_proj.weight")


# -- uniform checkpoints --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "role", "count"),
    [
        (llama, "query_head", 2),
        (tied_llama, "neuron", 33),
        (mistral, "kv_head", 1),
        (bert, "neuron", 33),
        (gpt2, "neuron", 33),
        (t5, "neuron", 33),
    ],
)
def test_a_uniform_checkpoint_reloads_with_the_stock_class(
    make: Callable[[], Any], role: str, count: int, tmp_path: Path
) -> None:
    counts = case(make).counts(role, count)
    rewritten = case(make).rewritten(counts)
    emit_uniform(
        tmp_path,
        fitted(make, counts).config,
        case(make).entries(rewritten),
        architecture=case(make).architecture,
    )
    model, info = case(make).architecture.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not list(tmp_path.glob("*.py"))
    feeds = tokens(make)
    assert np.array_equal(output(model, feeds), case(make).run(rewritten, feeds))


def test_config_of_a_uniform_checkpoint(tmp_path: Path) -> None:
    counts = case(mistral).counts("query_head", 2)
    emit_uniform(
        tmp_path,
        fitted(mistral, counts).config,
        case(mistral).entries(case(mistral).rewritten(counts)),
        architecture=transformers.MistralForCausalLM,
    )
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["architectures"] == ["MistralForCausalLM"]
    assert found["dtype"] == "float32"
    assert (found["num_attention_heads"], found["head_dim"]) == (4, 8)
    assert "prunec" not in found
    assert "auto_map" not in found


def test_tensors_that_do_not_fit_the_config_are_refused_before_writing(tmp_path: Path) -> None:
    counts = case(llama).counts("neuron", 33)
    entries = case(llama).entries(case(llama).rewritten(counts))
    with pytest.raises(PrunecError, match="P610") as error:
        emit_uniform(
            tmp_path / "out",
            case(llama).config,
            entries[1:],
            architecture=transformers.LlamaForCausalLM,
        )
    assert len(error.value.diagnostics) == 5
    assert not (tmp_path / "out").exists()


def test_only_harmless_files_are_copied(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    wanted = ["tokenizer.json", "generation_config.json", "LICENSE", "1_Pooling/config.json"]
    unwanted = ["pytorch_model.bin", "tokenizer.py", "README.md", "model.safetensors", "a.pkl"]
    for name in [*wanted, *unwanted]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("{}")
    counts = case(llama).counts("neuron", 33)
    emit_uniform(
        out,
        fitted(llama, counts).config,
        case(llama).entries(case(llama).rewritten(counts)),
        architecture=transformers.LlamaForCausalLM,
        source=source,
    )
    found = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert found == {*wanted, "model.safetensors", "config.json"}


# -- per-layer checkpoints ------------------------------------------------------------------


def section(make: Callable[[], Any], counts: Mapping[str, int]) -> tuple[Section, Rewritten]:
    rewritten = case(make).rewritten(counts)
    found = per_layer(
        case(make).family, case(make).axes, counts, rewritten.graph, trace, rewritten.kept
    )
    assert isinstance(found, Section), found
    return found, rewritten


def test_a_layers_own_number_is_never_taken_for_a_size() -> None:
    """`layer_idx` is 2 in the third layer, where 2 key-value heads become 1."""
    config = transformers.LlamaConfig(
        **SIZES | {"num_hidden_layers": 4}, **FFN, num_key_value_heads=2
    )
    family = Family(config, builder(transformers.LlamaForCausalLM))
    coupling = couple(trace(family.build(config)), ATEN)
    axes = {n: p.type.axes for n, p in coupling.graph.parameters.items()}
    counts = {g.name: 1 for g in coupling.groups if g.role == "kv_head"}
    rewritten = rewrite(coupling, {n: Selection(np.arange(k)) for n, k in counts.items()})
    found = attributes(family, axes, counts, dce(rewritten.graph), trace)
    assert isinstance(found, dict), found
    assert not any("layer_idx" in values for values in found.values())


def test_a_model_that_cannot_run_the_pruned_program_is_refused() -> None:
    """BERT has one head size for queries and values."""
    counts = case(bert).counts("head_dim", 4, 5)
    found = attributes(
        case(bert).family, case(bert).axes, counts, case(bert).rewritten(counts).graph, trace
    )
    assert isinstance(found, list)
    assert found[0].code == "P609"


@pytest.mark.parametrize(
    ("make", "role", "by_layer", "integers"),
    [
        (tied_llama, "neuron", (33, 44), {"intermediate_size": 33}),
        (llama, "query_head", (1, 2), {"num_key_value_groups": 1}),
        (llama, "hidden", (40,), {"hidden_size": 40}),
        (bert, "query_head", (4, 5), {"num_attention_heads": 4}),
        (gpt2, "query_head", (4, 5), {"num_heads": 4, "split_size": 32}),
        (opt, "query_head", (4, 5), {"num_heads": 4}),
        (neox, "query_head", (4, 5), {}),
        (neox, "head_dim", (3, 4), {"head_size": 5}),
        (gemma3, "neuron", (33, 44), {"intermediate_size": 33}),
        (phi3, "query_head", (1, 2), {"num_key_value_groups": 1, "config.num_attention_heads": 2}),
        (t5, "neuron", (33, 44), {}),
    ],
)
def test_a_per_layer_checkpoint_reloads_bit_for_bit(
    make: Callable[[], Any],
    role: str,
    by_layer: tuple[int, ...],
    integers: dict[str, int],
    tmp_path: Path,
) -> None:
    """With remote code through the Auto class, and with the installed code. The integers of the
    first module show what was found to follow."""
    found, rewritten = section(make, case(make).counts(role, *by_layer))
    assert next(iter(found.attributes.values()), {}) == integers
    emit_per_layer(
        tmp_path,
        case(make).config,
        found,
        case(make).entries(rewritten),
        architecture=case(make).architecture,
    )
    assert (tmp_path / CODE.name).read_bytes() == CODE.read_bytes()
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    own = "." + config.architectures[0]
    auto = getattr(transformers, next(a for a, r in config.auto_map.items() if r.endswith(own)))
    remote, info = auto.from_pretrained(tmp_path, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values())
    installed = own_class(config).from_pretrained(tmp_path)
    feeds = tokens(make)
    wanted = case(make).run(rewritten, feeds)
    assert np.array_equal(output(remote, feeds), wanted)
    assert np.array_equal(output(installed, feeds), wanted)


@pytest.fixture(scope="module")
def heads_by_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layers differ in heads, in rotary angles from the original, and in width."""
    counts = case(tied_llama).counts("query_head", 1, 3) | case(tied_llama).counts("neuron", 33, 44)
    counts |= {g.name: g.size // 2 for g in case(tied_llama).groups("head_dim")}
    found, rewritten = section(tied_llama, counts)
    folder = tmp_path_factory.mktemp("heads")
    emit_per_layer(
        folder,
        case(tied_llama).config,
        found,
        case(tied_llama).entries(rewritten),
        architecture=transformers.LlamaForCausalLM,
    )
    return folder


def load_remote(folder: Path, auto: Any = transformers.AutoModelForCausalLM, **options: Any) -> Any:
    return auto.from_pretrained(folder, trust_remote_code=True, **options).eval()


def test_rotary_angles_that_stayed_are_restored(heads_by_layer: Path) -> None:
    """Half of the 4 angles stay; they are those of the original, in any dtype."""
    dims = json.loads((heads_by_layer / "config.json").read_text())["prunec"]["buffers"]
    kept = dims["model.rotary_emb.inv_freq"]["0"]
    whole = case(tied_llama).arrays["model.rotary_emb.inv_freq"]
    model = load_remote(heads_by_layer, dtype=torch.bfloat16)
    assert np.array_equal(model.model.rotary_emb.inv_freq, whole[kept])


def test_generation_with_and_without_cache_agree(heads_by_layer: Path) -> None:
    model = load_remote(heads_by_layer)
    ids = torch.as_tensor(tokens(tied_llama)["input_ids"])
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
    }
    plain = model.generate(ids, use_cache=False, **options)
    assert torch.equal(plain, model.generate(ids, **options))
    assert torch.equal(plain, model.generate(ids, cache_implementation="static", **options))


def test_saving_again_keeps_everything(heads_by_layer: Path, tmp_path: Path) -> None:
    """From remote code and from the installed code, also after the vocabulary grew."""
    feeds = tokens(tied_llama)
    wanted = output(load_remote(heads_by_layer), feeds)
    config = transformers.AutoConfig.from_pretrained(heads_by_layer)
    models = load_remote(heads_by_layer), own_class(config).from_pretrained(heads_by_layer)
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / str(i))
        assert (tmp_path / str(i) / CODE.name).read_bytes() == CODE.read_bytes()
        assert np.array_equal(output(load_remote(tmp_path / str(i)), feeds), wanted)
    models[0].resize_token_embeddings(140)
    models[0].save_pretrained(tmp_path / "grown")
    grown = load_remote(tmp_path / "grown")
    assert grown.get_output_embeddings().weight.shape == (140, 48)
    assert grown.get_output_embeddings().weight is grown.get_input_embeddings().weight


def test_the_base_model_loads_too(heads_by_layer: Path) -> None:
    base = load_remote(heads_by_layer, transformers.AutoModel)
    assert type(base).__name__ == "PrunedLlamaModel"
    whole = load_remote(heads_by_layer)
    ids = torch.as_tensor(tokens(tied_llama)["input_ids"])
    assert torch.equal(base(ids).last_hidden_state, whole.model(ids).last_hidden_state)


def test_another_head_can_be_put_on(heads_by_layer: Path) -> None:
    model = load_remote(
        heads_by_layer, transformers.AutoModelForSequenceClassification, num_labels=3
    )
    model.config.pad_token_id = 0
    assert model(torch.as_tensor(tokens(tied_llama)["input_ids"])).logits.shape == (2, 3)


def test_stock_code_refuses_loudly(heads_by_layer: Path) -> None:
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.AutoModelForCausalLM.from_pretrained(heads_by_layer)


def test_the_section_states_the_fields_of_each_layer(heads_by_layer: Path) -> None:
    found = json.loads((heads_by_layer / "config.json").read_text())
    assert "per_layer_config" not in found
    layers = found["prunec"]["per_layer_config"]
    assert layers["0"] == {"num_attention_heads": 2, "intermediate_size": 33, "head_dim": 4}
    assert layers["1"] == {"intermediate_size": 44, "head_dim": 4}
    assert transformers.AutoConfig.from_pretrained(heads_by_layer).num_attention_heads == 6


def test_a_model_can_be_pruned_twice(heads_by_layer: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(heads_by_layer)
    first = own_class(config).from_pretrained(heads_by_layer)
    family = Family(config, builder(own_class(config)))
    coupling = couple(trace(family.build(config)), ATEN)
    axes = {n: p.type.axes for n, p in coupling.graph.parameters.items()}
    counts = {g.name: 1 + i for i, g in enumerate(coupling.groups) if g.role == "neuron"}
    counts |= {g.name: 1 for g in coupling.groups if g.name.endswith("rotary_emb/head_dim")}
    found = rewrite(coupling, {n: Selection(np.arange(k)) for n, k in counts.items()})
    described = per_layer(family, axes, counts, dce(found.graph), trace, found.kept)
    assert isinstance(described, Section), described
    assert refused_uniform(family, axes, counts)
    entries = [
        Entry(n, t.numpy().dtype, sliced.shape, lambda s=sliced: s)
        for n, t in first.state_dict().items()
        for sliced in [Sliced(t.numpy(), found.kept.get(n, {}))]
    ]
    emit_per_layer(tmp_path, config, described, entries, architecture=own_class(config))
    again = load_remote(tmp_path)
    assert type(again).__name__ == "PrunedLlamaForCausalLM"
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in first.parameters())
    whole = {"shapes", "buffers", "attributes"}
    assert again.config.prunec["attributes"]["model.layers.0.self_attn"]["head_dim"] == 4
    assert whole <= again.config.prunec.keys()


def test_frequencies_that_would_come_back_are_refused() -> None:
    config = llama()
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    family = Family(config, builder(transformers.LlamaForCausalLM))
    counts = {g.name: g.size // 2 for g in case(llama).groups("head_dim")}
    graph = case(llama).coupling.graph
    found = per_layer(family, case(llama).axes, counts, graph, trace)
    assert isinstance(found, list)
    assert found[0].code == "P613"
    assert found[0].where == "model.rotary_emb.inv_freq"


def refused_uniform(family: Family, axes: Mapping[str, Any], counts: Mapping[str, int]) -> bool:
    return isinstance(fit(family, axes, counts), list)


def test_every_auto_class_of_the_family_is_mapped() -> None:
    found = auto_map(bert(), "BertModel")
    assert found["AutoModel"] == "modeling_prunec.PrunedBertModel"
    assert found["AutoModelForMaskedLM"] == "modeling_prunec.PrunedBertForMaskedLM"


# -- the loading code itself ----------------------------------------------------------------


def test_the_loading_code_needs_torch_and_transformers_only() -> None:
    lines = CODE.read_text().splitlines()
    roots = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import", "from"))}
    assert roots == {"copy", "typing", "torch", "transformers"}


def test_a_section_of_another_model_is_refused() -> None:
    model = transformers.BertModel(bert())
    with pytest.raises(ValueError, match="no module"):
        modeling_prunec.shrink(model, {"shapes": {"decoder.weight": [1]}})
    with pytest.raises(ValueError, match="at most"):
        modeling_prunec.shrink(model, {"shapes": {"pooler.dense.weight": [96, 48]}})
    with pytest.raises(AttributeError):
        modeling_prunec.PrunedNothing  # noqa: B018


def test_layers_state_their_new_sizes() -> None:
    model = builder(transformers.GPT2LMHeadModel)(gpt2())
    name = "transformer.h.0.mlp.c_fc.weight"
    modeling_prunec.shrink(model, {"shapes": {name: [48, 60]}})
    layer = model.get_submodule("transformer.h.0.mlp.c_fc")
    assert (layer.nx, layer.nf) == (48, 60)
    assert shapes(model)[name] == (48, 60)
