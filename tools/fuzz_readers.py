"""What is damaged for each reader, and how prunec reads it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutations import damaged, damaged_json, damaged_safetensors, damaged_zip

__all__ = ["READERS", "Reader"]

Damager = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """`make` writes sound files into a folder; those that `damagers` names (by the end of their
    names) are damaged one at a time; `read` reads the folder as prunec does."""

    make: Callable[[Path], None]
    damagers: Mapping[str, Damager]
    read: Callable[[Path], None]


def _tiny(folder: Path) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=64, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def _make_config(folder: Path) -> None:
    _tiny(folder)
    (folder / "model.safetensors").unlink()


def _read_config(folder: Path) -> None:
    from prunec.frontends.hf import build_meta, load_config
    from prunec.frontends.source import resolve

    build_meta(load_config(resolve(str(folder), need_weights=False)))


def _make_weights(folder: Path) -> None:
    model = _tiny(folder / "one")
    model.save_pretrained(folder / "shards", max_shard_size="4KB")


def _read_weights(folder: Path) -> None:
    import numpy as np

    from prunec.frontends.weights import WeightStore

    for store in (WeightStore(folder / "one"), WeightStore(folder / "shards")):
        for name in store:
            held = store[name]
            assert held.shape == store.shape(name)
            np.asarray(held).tobytes()


def _make_gguf(folder: Path) -> None:
    import gguf
    import numpy as np

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(29))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3, *[1] * 29])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd": (32, 16), "output_norm": (16,), "output": (32, 16)}
    block = {"attn_norm": (16,), "ffn_norm": (16,), "attn_q": (16, 16), "attn_k": (16, 16),
             "attn_v": (16, 16), "attn_output": (16, 16), "ffn_gate": (24, 16),
             "ffn_up": (24, 16), "ffn_down": (16, 24)}  # fmt: skip
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _damaged_gguf(data: bytes, rng: random.Random) -> bytes:
    """Mostly in what stands before the tensors' data, a sixth of the file."""
    head = len(data) // 6
    return damaged(data[:head], rng) + data[head:] if rng.random() < 0.8 else damaged(data, rng)


def _read_gguf(folder: Path) -> None:
    import shutil

    from prunec.frontends.hf import load_config
    from prunec.frontends.source import resolve

    cache = folder.parent / "cache"
    os.environ["PRUNEC_CACHE"] = str(cache)
    try:
        load_config(resolve(str(folder / "tiny.gguf")))
    finally:
        shutil.rmtree(cache, ignore_errors=True)


SHAPES = {"a.weight": (6, 8), "b.weight": (8, 4), "b.bias": (8,)}


def _make_plan(folder: Path) -> None:
    from prunec.planning.planfile import write_plan

    plan = {
        "parameters": {
            "a.weight": {"1": [0, 2, 3, 7]}, "b.weight": {"0": [0, 2, 3, 7]},
            "b.bias": {"0": [0, 2, 3, 7]},
        },
        "shapes": {name: list(shape) for name, shape in SHAPES.items()},
        "groups": [{"name": "b/neuron", "role": "neuron", "size": 8, "kept": 4, "parent": None}],
        "pinned": [{"axis": "a", "where": ["a.weight[0]"], "reason": "graph output", "source": ""}],
    }  # fmt: skip
    write_plan(plan, folder / "plan.json")


def _read_plan(folder: Path) -> None:
    from prunec.planning.planfile import read_plan

    read_plan(folder / "plan.json", SHAPES)


def _make_recipe(folder: Path) -> None:
    from prunec.options.prune import PruneOptions
    from prunec.options.recipe import write_recipe
    from prunec.options.target import parse_targets

    (folder / "text.txt").write_text("some words\n" * 50, encoding="utf-8")
    options = PruneOptions(
        str(folder / "model"), folder / "out", parse_targets(["params=75%", "flops=80%"]),
        groups=("neuron",), calibration=str(folder / "text.txt"), method="wanda-sp",
    ).settle()  # fmt: skip
    write_recipe(folder / "recipe.yaml", options, "0" * 64)


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 108)
)
"""Ten lines of YAML that stand for ten billion values."""


def _damaged_recipe(data: bytes, rng: random.Random) -> bytes:
    """As bytes, or with a value replaced by what YAML makes more of than it looks."""
    if rng.random() < 0.5:
        return damaged(data, rng)
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    key, colon, _ = lines[at].partition(b": ")
    nasty = rng.choice((
        b"!!python/object/apply:os.system ['true']", b"&x [*x]", b"*nothing", b"!!binary '='",
        b"{? [a]: b}", b"2001-01-01", b"0x7f", b"1e999", b".nan", b"[" * 2000, b"|\n    text",
        b"*k", json.dumps(rng.choice(("", 0, -1, 2**70, None, [], {}, "\0", "x" * 9999))).encode(),
    ))  # fmt: skip
    lines[at] = key + (colon or b": ") + nasty + b"\n"
    return (BOMB if b"*k" in nasty else b"") + b"".join(lines)


def _read_recipe(folder: Path) -> None:
    from prunec.options.request import prune_options

    prune_options({"recipe": folder / "recipe.yaml", "out": folder / "new"})


def _make_calibration(folder: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    words = "the sea is wide, and the land is old. "
    (folder / "a.txt").write_text(words * 30, encoding="utf-8")
    records = (json.dumps({"text": words * 2, "id": i}) for i in range(8))
    (folder / "b.jsonl").write_text("\n".join(records), encoding="utf-8")
    arrays = {"input_ids": rng.integers(0, 60, (4, 12)), "attention_mask": np.ones((4, 12), int)}
    np.savez(folder / "c.npz", **arrays)  # type: ignore[arg-type]
    (folder / "loose").mkdir()
    for name, array in arrays.items():
        np.save(folder / "loose" / f"{name}.npy", array)


def _read_calibration(folder: Path) -> None:
    from prunec.frontends.arrays import read_arrays
    from prunec.frontends.places import check_place, read_document

    accepted = ("input_ids", "attention_mask")
    for name in ("a.txt", "b.jsonl"):
        check_place(folder / name)
        read_document(folder / name, 400)
    for name in ("c.npz", "loose"):
        check_place(folder / name)
        read_arrays(folder / name, accepted, 3)


def _make_tokenizer(folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    _make_config(folder)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i + 3 for i in range(20)}
    made = Tokenizer(models.BPE({**vocabulary, "a": 23, "b": 24, "ab": 25}, [("a", "b")]))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("x", "y")])
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast: Any = transformers.PreTrainedTokenizerFast
    fast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def _read_tokenizer(folder: Path) -> None:
    from prunec.frontends.source import resolve
    from prunec.frontends.text import load_tokenizer, spread_windows

    source = resolve(str(folder), need_weights=False)
    spread_windows("w1 ab w2 " * 60, load_tokenizer(source), 2, 8, 0, "text")


def _make_onnx(folder: Path) -> None:
    import torch

    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    torch.onnx.export(
        layers, (torch.zeros(2, 8),), folder / "model.onnx", dynamo=True, verbose=False,
        external_data=True,
    )  # fmt: skip


def _read_onnx(folder: Path) -> None:
    from prunec.frontends.onnx_read import open_model, stored_tensors

    for tensor in stored_tensors(open_model(folder / "model.onnx")):
        tensor.numpy()


READERS: Mapping[str, Reader] = {
    "config": Reader(_make_config, {"config.json": damaged_json}, _read_config),
    "safetensors": Reader(
        _make_weights,
        {".safetensors": damaged_safetensors, "index.json": damaged_json},
        _read_weights,
    ),
    "gguf": Reader(_make_gguf, {".gguf": _damaged_gguf}, _read_gguf),
    "onnx": Reader(_make_onnx, {".onnx": damaged, ".data": damaged}, _read_onnx),
    "plan": Reader(_make_plan, {".json": damaged_json}, _read_plan),
    "recipe": Reader(_make_recipe, {".yaml": _damaged_recipe}, _read_recipe),
    "calibration": Reader(
        _make_calibration,
        {".txt": damaged, ".jsonl": damaged, ".npz": damaged_zip, ".npy": damaged},
        _read_calibration,
    ),
    "tokenizer": Reader(
        _make_tokenizer,
        {"tokenizer.json": damaged_json, "tokenizer_config.json": damaged_json},
        _read_tokenizer,
    ),
}
"""By name; each reads what users hand to prunec."""
