"""Load student and teacher, and see to it that they speak of the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunec.frontends.hf import build_meta, load_config, load_model
from prunec.frontends.source import Source
from prunec.frontends.text import load_tokenizer
from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.measuring.artifacts import find_artifacts
from prunec.output.own_code import find_source

__all__ = [
    "Opened",
    "check_alike",
    "check_quantizer",
    "device",
    "open_model",
    "open_student",
    "writes",
]

BITS = "bitsandbytes"


@dataclass(frozen=True)
class Opened:
    """A model with its weights, and where it came from."""

    source: Source
    config: Any
    model: Any


def open_student(
    model: str, *, trust: bool, quantized: bool = False, empty: bool = False
) -> Opened:
    """A Hugging Face folder, or the one in a folder that `prunec prune` wrote.

    Raises P876 when there is none, and what `resolve` and `load_model` raise.
    """
    found = find_artifacts(model, trust_remote_code=trust)
    stored = next((artifact for artifact in found if artifact.kind == "hf"), None)
    if stored is None:
        raise fail(
            "P876",
            f"{model} holds no Hugging Face checkpoint, and nothing else can be trained",
            where=model,
            help="prune with --format hf (it may be one of several)",
            exit_code=Exit.USAGE,
        )
    return open_model(stored.location, trust=trust, quantized=quantized, empty=empty)


def open_model(
    model: str,
    *,
    trust: bool,
    dtype: torch.dtype = torch.float32,
    quantized: bool = False,
    empty: bool = False,
) -> Opened:
    """A model in evaluation mode. With `quantized` its linear layers hold four bits a weight, with
    `empty` it is on the meta device."""
    source = find_source(model, trust_remote_code=trust)
    config = load_config(source)
    if quantized:
        config = _four_bits(config)
    trust = source.trust_remote_code
    module: Any = (
        build_meta(config, trust_remote_code=trust)
        if empty
        else load_model(source, config, dtype=dtype)
    )
    for part in (module.config, *vars(module.config).values()):
        if hasattr(part, "use_cache"):
            part.use_cache = False  # whole windows are read at once
    return Opened(source, config, module)


def check_quantizer() -> None:
    """P877 (exit 2) where four-bit weights are asked for and bitsandbytes is not there."""
    from importlib.util import find_spec

    if find_spec(BITS) is not None:
        return
    raise fail(
        "P877",
        f"qlora keeps the weights in four bits, which needs the package {BITS}",
        where="--train qlora",
        help=f"pip install {BITS}, or use --train lora",
        exit_code=Exit.USAGE,
    )


def check_alike(student: Opened, teacher: Opened) -> None:
    """P873 when the two have vocabularies of other sizes, or number the same words otherwise."""
    sizes = [_vocabulary(opened.model) for opened in (teacher, student)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise _apart(f"{sizes[0]} tokens, the student {sizes[1]}")
    if not (student.source.tokenizer and teacher.source.tokenizer):
        return
    words, own = (load_tokenizer(opened.source).get_vocab() for opened in (teacher, student))
    if words != own:
        other = next(word for word in {**words, **own} if words.get(word) != own.get(word))
        raise _apart(
            f"{other!r} as token {words.get(other)}, the student as token {own.get(other)}"
        )


def writes(model: Any) -> bool:
    """Whether a model predicts the next token."""
    return bool(getattr(model, "can_generate", lambda: False)())


def device() -> torch.device:
    """Where training happens."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _vocabulary(model: Any) -> int | None:
    """Rows of the embedding of tokens; None where there is none."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return getattr(embedding, "num_embeddings", None)


def _apart(fact: str) -> PrunecError:
    return fail(
        "P873",
        f"teacher and student have other vocabularies: the teacher has {fact}",
        where="--teacher",
        help="give the dense model that this one was pruned from",
        exit_code=Exit.USAGE,
    )


def _four_bits(config: Any) -> Any:
    import transformers

    made: Any = transformers.BitsAndBytesConfig
    config.quantization_config = made(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return config
