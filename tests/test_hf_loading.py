"""Reading Hugging Face models: what MODEL means, configurations, and which tensor is which."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFWriter
from safetensors.numpy import load_file, save_file
from torch import nn

from prunec.frontends import gguf
from prunec.frontends.checkpoint import (
    checkpoint_map,
    load_through_transformers,
    map_checkpoint_names,
    open_parameters,
)
from prunec.frontends.hf import build_meta, load_config, load_model, model_class, real_buffers
from prunec.frontends.source import resolve
from prunec.frontends.tensors import to_numpy, to_torch
from prunec.frontends.weights import ArrayStore, RenamedStore
from prunec.ir.diagnostics import PrunecError

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 37,
    "max_position_embeddings": 32,
}


def llama(**changes: Any) -> nn.Module:
    config = transformers.LlamaConfig(**SMALL | {"num_key_value_heads": 1} | changes)
    return transformers.LlamaForCausalLM(config)


def bert(head: str = "BertModel") -> nn.Module:
    return getattr(transformers, head)(transformers.BertConfig(**SMALL))


def vision() -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[8, 8], depths=[1, 1])
    return transformers.ResNetForImageClassification(config)


def mixture() -> nn.Module:
    config = transformers.MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=3)
    return transformers.MixtralForCausalLM(config)


def seq2seq() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=37, **sizes))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "bert": bert,
    "bert-masked": lambda: bert("BertForMaskedLM"),
    "bert-classifier": lambda: bert("BertForSequenceClassification"),
    "t5": seq2seq,
    "resnet": vision,
    "mixtral": mixture,
}


def saved(model: Any, folder: Path, **config: Any) -> Path:
    """Save a model, and then change fields of its config.json (None removes one)."""
    model.save_pretrained(folder)
    edit(folder, **config)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def codes(run: Callable[[], Any]) -> set[str]:
    with pytest.raises(PrunecError) as raised:
        run()
    for diagnostic in raised.value.diagnostics:
        assert diagnostic.help, "every diagnostic has a remedy"
        assert "Traceback" not in diagnostic.render()
    return {d.code for d in raised.value.diagnostics}


def parameters(folder: Path) -> Any:
    source = resolve(str(folder))
    return open_parameters(build_meta(load_config(source)), source)


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_has_its_stored_value(tmp_path: Path, name: str) -> None:
    model: Any = ZOO[name]()
    source = resolve(str(saved(model, tmp_path)))
    meta = build_meta(load_config(source))
    assert type(meta) is type(model)
    assert not meta.training
    assert all(t.is_meta for t in [*meta.parameters(), *meta.buffers()])
    store = open_parameters(meta, source)
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(store[key], to_numpy(tensor), err_msg=key)


@pytest.mark.parametrize("name", ZOO)
def test_buffers_have_real_values(tmp_path: Path, name: str) -> None:
    model = ZOO[name]()
    found = real_buffers(load_config(resolve(str(saved(model, tmp_path)))))
    assert set(found) == {key for key, _ in model.named_buffers(remove_duplicate=False)}
    for key, buffer in model.named_buffers():
        np.testing.assert_array_equal(found[key], to_numpy(buffer), err_msg=key)


def test_stored_tensors_stay_in_the_file(tmp_path: Path) -> None:
    assert isinstance(parameters(saved(llama(), tmp_path)), RenamedStore)


def test_fused_experts_are_loaded_by_transformers(tmp_path: Path) -> None:
    folder = saved(mixture(), tmp_path)
    source = resolve(str(folder))
    assert source.weights is not None
    assert any(".experts.0." in name for name in source.weights), "stored one by one"
    assert isinstance(parameters(folder), ArrayStore)
    meta = build_meta(load_config(source))
    assert codes(lambda: map_checkpoint_names(meta, source.require_weights())) == {"P123"}


def test_fallback_keeps_the_stored_dtype(tmp_path: Path) -> None:
    source = resolve(str(saved(mixture().bfloat16(), tmp_path)))
    store = load_through_transformers(source)
    assert {str(store.dtype(name)) for name in store} == {"bfloat16"}


def test_tied_weights_that_are_stored_once(tmp_path: Path) -> None:
    folder = saved(llama(tie_word_embeddings=True), tmp_path)
    assert "lm_head.weight" not in resolve(str(folder)).require_weights()
    store = parameters(folder)
    assert store.stored["lm_head.weight"] == store.stored["model.embed_tokens.weight"]


def test_tied_weights_stored_under_the_other_name(tmp_path: Path) -> None:
    folder = saved(llama(tie_word_embeddings=True), tmp_path)
    rename(folder, lambda name: name.replace("model.embed_tokens", "lm_head"))
    assert parameters(folder).stored["model.embed_tokens.weight"] == "lm_head.weight"


def rename(folder: Path, new: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    tensors = {new(name): array for name, array in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


def test_tied_by_configuration_but_different(tmp_path: Path) -> None:
    folder = saved(llama(tie_word_embeddings=False), tmp_path, tie_word_embeddings=True)
    assert codes(lambda: parameters(folder)) == {"P124"}


def test_base_model_read_from_a_checkpoint_with_head(tmp_path: Path) -> None:
    folder = saved(bert("BertForMaskedLM"), tmp_path, architectures=["BertModel"])
    # The pooler is not in the file: a base model needs one.
    assert codes(lambda: parameters(folder)) == {"P120"}
    folder = saved(bert("BertForSequenceClassification"), tmp_path, architectures=["BertModel"])
    store = parameters(folder)
    assert store.stored["pooler.dense.weight"] == "bert.pooler.dense.weight"
    source = resolve(str(folder))
    found = checkpoint_map(build_meta(load_config(source)), source.require_weights())
    assert found.unused == ("classifier.bias", "classifier.weight")


def test_head_read_from_a_checkpoint_without_prefix(tmp_path: Path) -> None:
    folder = saved(llama(tie_word_embeddings=True), tmp_path)
    rename(folder, lambda name: name.removeprefix("model."))
    assert parameters(folder).stored["model.norm.weight"] == "norm.weight"


def test_legacy_names(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path)
    rename(
        folder,
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    )
    store = parameters(folder)
    assert store.stored["embeddings.LayerNorm.weight"] == "embeddings.LayerNorm.gamma"


def test_missing_parameters_are_named(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(PrunecError, match=r"P120.*model\.layers\.1\.mlp\.up_proj\.weight"):
        parameters(folder)
    assert codes(lambda: load_model(resolve(str(folder)))) == {"P120"}


def test_configuration_with_fewer_layers(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path, num_hidden_layers=1)
    assert codes(lambda: parameters(folder)) == {"P121"}


def test_configuration_with_more_layers(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path, num_hidden_layers=3)
    assert codes(lambda: parameters(folder)) == {"P120"}


def test_configuration_of_another_size(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path, intermediate_size=32)
    with pytest.raises(PrunecError, match=r"gate_proj.weight is \[24, 16\] .* \[32, 16\]"):
        parameters(folder)


def test_quantized_checkpoint(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert codes(lambda: parameters(folder)) == {"P125"}


def test_real_model_computes_the_same(tmp_path: Path) -> None:
    model = llama().eval()
    loaded = load_model(resolve(str(saved(model, tmp_path))))
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64])
def test_numpy_and_back(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    array = to_numpy(tensor)
    np.testing.assert_array_equal(array.astype(np.int64), [[0, 1, 2], [3, 4, 5]])
    back = to_torch(array)
    assert back.dtype == dtype
    assert torch.equal(back.float(), tensor.float())


# What MODEL means


def test_bare_configuration(tmp_path: Path) -> None:
    path = saved(llama(), tmp_path) / "config.json"
    (tmp_path / "model.safetensors").unlink()
    source = resolve(str(path), need_weights=False)
    assert (source.kind, source.weights) == ("config", None)
    assert sum(p.numel() for p in build_meta(load_config(source)).parameters()) == 5104
    assert codes(lambda: resolve(str(path))) == {"P101"}
    assert resolve(str(tmp_path), need_weights=False).kind == "config"
    assert codes(lambda: resolve(str(tmp_path))) == {"P101"}
    assert codes(source.require_weights) == {"P101"}


def test_who_needs_no_weights_need_not_have_them_whole(tmp_path: Path) -> None:
    saved(llama(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    source = resolve(str(tmp_path), need_weights=False)
    assert (source.kind, source.weights) == ("hf", None)
    assert codes(lambda: resolve(str(tmp_path))) == {"P103"}


def test_onnx_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    assert resolve(str(path)).kind == "onnx"
    assert codes(lambda: load_config(resolve(str(path)))) == {"P110"}


def test_the_folder_that_was_meant_is_named(tmp_path: Path) -> None:
    saved(llama(), tmp_path / "hf")
    with pytest.raises(PrunecError, match=r"did you mean .*hf\?"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("no/such/folder", "P100"),
        ("./nothing", "P100"),
        ("missing.gguf", "P100"),
        ("no-such-owner/no-such-model", "P115"),
        ("bad--id", "P115"),
    ],
)
def test_nothing_there(name: str, code: str) -> None:
    assert codes(lambda: resolve(name)) == {code}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("model.safetensors", "P110"),
        ("pytorch_model.bin", "P102"),
        ("model.txt", "P100"),
        ("model.gguf", "P116"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / name).write_bytes(b"nothing")
    assert codes(lambda: resolve(str(tmp_path / name))) == {code}


def test_pickle_checkpoint(tmp_path: Path) -> None:
    saved(llama(), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert codes(lambda: resolve(str(tmp_path))) == {"P102"}


def test_damaged_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    assert codes(lambda: resolve(str(path))) == {"P116"}
    monkeypatch.setattr(gguf, "_check_blocks", lambda path: None)
    assert codes(lambda: resolve(str(path))) == {"P116"}
    assert not list(gguf.cache_folder().iterdir()), "nothing half-made is left"


@pytest.mark.parametrize(
    ("blocks", "says"), [(32, "tells of 32 blocks and holds 1"), (None, "block_count' is missing")]
)
def test_gguf_that_lacks_blocks(
    blocks: int | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after the minutes that making them up would take."""
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("it was read all the same"))
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    if blocks is not None:
        writer.add_block_count(blocks)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(PrunecError, match=says):
        resolve(str(tmp_path / "model.gguf"))


def test_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion itself is transformers'; here is what surrounds it."""
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path / "cache"))
    made = []

    def convert(path: Path, folder: Path) -> None:
        made.append(path)
        saved(llama(), folder)

    monkeypatch.setattr(gguf, "_convert", convert)
    monkeypatch.setattr(gguf, "_check_blocks", lambda path: None)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    source = resolve(str(path))
    assert source.kind == "gguf"
    assert source.path.is_relative_to(tmp_path / "cache")
    assert resolve(str(path)).path == source.path
    assert len(made) == 1, "the second time it is there"
    path.write_bytes(b"GGUF changed")
    assert resolve(str(path)).path != source.path


# Configurations


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "P110"),
        ("[1]", "P110"),
        ("{}", "P111"),
        ('{"model_type": 3}', "P111"),
        ('{"model_type": "lama"}', "P111"),
        ('{"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}', "P113"),
        ('{"model_type": "llama", "hidden_size": "large"}', "P112"),
        ('{"model_type": "llama", "hidden_size": 16, "num_attention_heads": 3}', "P112"),
        ('{"model_type": "llama", "rope_parameters": {"rope_type": "no"}}', "P112"),
        ('{"model_type": "llama", "architectures": ["LlamaForNothing"]}', "P111"),
        ('{"model_type": "llama", "architectures": ["BertModel"]}', "P111"),
        ('{"model_type": "llama", "vocab_size": -3}', "P112"),
    ],
)
def test_bad_configurations(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "config.json").write_text(text)
    source = resolve(str(tmp_path), need_weights=False)
    assert codes(lambda: build_meta(load_config(source))) == {code}


def test_near_names_are_offered(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(PrunecError, match="did you mean llama"):
        load_config(resolve(str(tmp_path), need_weights=False))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", "LlamaForCausalLM"),
        ("bert", "BertForMaskedLM"),
        ("t5", "T5ForConditionalGeneration"),
        ("vit", "ViTForImageClassification"),
        ("gemma3_text", "Gemma3ForCausalLM"),
    ],
)
def test_class_without_architectures(tmp_path: Path, kind: str, expected: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    config = load_config(resolve(str(tmp_path), need_weights=False))
    assert model_class(config).__name__ == expected


CODE = """
from transformers import LlamaForCausalLM

class Narrow(LlamaForCausalLM):
    pass
"""


def test_code_of_its_own_runs_only_when_allowed(tmp_path: Path) -> None:
    folder = saved(
        llama(),
        tmp_path,
        architectures=["Narrow"],
        auto_map={"AutoModelForCausalLM": "modeling_narrow.Narrow"},
    )
    (folder / "modeling_narrow.py").write_text(CODE)
    config = load_config(resolve(str(folder)))
    assert codes(lambda: build_meta(config)) == {"P113"}
    assert codes(lambda: load_model(resolve(str(folder)))) == {"P113"}
    source = resolve(str(folder), trust_remote_code=True)
    meta = build_meta(load_config(source), trust_remote_code=True)
    assert type(meta).__name__ == "Narrow"
    assert len(open_parameters(meta, source)) == len(meta.state_dict())
    assert type(load_model(source)).__name__ == "Narrow"
