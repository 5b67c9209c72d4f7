"""A Llama of random weights on disk, written tensor by tensor."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import Document, say

__all__ = ["DTYPES", "SIZES", "random_llama"]

SIZES = {
    "1.3b": {"layers": 24, "hidden": 2048, "ffn": 5504, "heads": 16, "vocab": 32000},
    "7b": {"layers": 32, "hidden": 4096, "ffn": 11008, "heads": 32, "vocab": 32000},
    "tiny": {"layers": 3, "hidden": 64, "ffn": 160, "heads": 4, "vocab": 500},
}
DTYPES = {"float16": ("F16", np.float16), "float32": ("F32", np.float32)}
CHUNK = 4_000_000
"""Random numbers that are made at once."""


def random_llama(folder: Path, size: str, dtype: str) -> Path:
    """The folder of a Llama with random weights, made tensor by tensor if it is not there."""
    found = folder / f"llama-{size}-{dtype}"
    if found.is_dir():
        return found
    stage = Path(tempfile.mkdtemp(prefix=".llama-", dir=folder))
    try:
        sizes = SIZES[size]
        say(f"making {found}")
        (stage / "config.json").write_text(json.dumps(_config(sizes, dtype)), encoding="utf-8")
        _write(stage / "model.safetensors", dict(_shapes(sizes)), *DTYPES[dtype])
        stage.rename(found)
    except BaseException:
        shutil.rmtree(stage)
        raise
    return found


def _config(sizes: dict[str, int], dtype: str) -> Document:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": sizes["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": sizes["ffn"],
        "max_position_embeddings": 2048,
        "num_attention_heads": sizes["heads"],
        "num_hidden_layers": sizes["layers"],
        "num_key_value_heads": sizes["heads"],
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "vocab_size": sizes["vocab"],
    }


def _shapes(sizes: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn, table = sizes["hidden"], sizes["ffn"], (sizes["vocab"], sizes["hidden"])
    yield "lm_head.weight", table
    yield "model.embed_tokens.weight", table
    yield "model.norm.weight", (hidden,)
    for layer in range(sizes["layers"]):
        at = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{name}.weight", (hidden,)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{at}.self_attn.{name}.weight", (hidden, hidden)
        yield f"{at}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{at}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, ffn)


def _write(path: Path, shapes: dict[str, tuple[int, ...]], code: str, dtype: Any) -> None:
    """A safetensors file of numbers around 0 (around 1 for norms), never much of it in memory."""
    width, at = np.dtype(dtype).itemsize, 0
    fields: Document = {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        end = at + math.prod(shape) * width
        fields[name] = {"dtype": code, "shape": shape, "data_offsets": [at, end]}
        at = end
    head = json.dumps(fields).encode()
    head += b" " * (-len(head) % 8)
    rng = np.random.default_rng(0)
    with path.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for shape in shapes.values():
            for chunk in _numbers(rng, math.prod(shape), norm=len(shape) == 1):
                stream.write(chunk.astype(dtype).tobytes())


def _numbers(
    rng: np.random.Generator, count: int, *, norm: bool
) -> Iterator[npt.NDArray[np.float32]]:
    for start in range(0, count, CHUNK):
        drawn = rng.standard_normal(min(CHUNK, count - start), dtype=np.float32) * np.float32(0.02)
        yield drawn + np.float32(1) if norm else drawn
