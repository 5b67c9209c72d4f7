"""Tiny models, saved with a tokenizer of words whose ids are plain to see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from prunec.frontends.hf import build_meta, load_config
from prunec.frontends.source import Source, resolve
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError

__all__ = ["WORDS", "Letters", "Make", "build", "maker", "refused", "text", "tokenizer", "told"]

Make = Callable[..., tuple[Source, Any]]

WORDS = 60
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": WORDS + 3,
    "max_position_embeddings": 64,
}


def tokenizer(around: bool = False) -> Any:
    """Words `w0`, `w1` ... are their own number plus 3; 0 pads, 1 starts and 2 ends a text."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i + 3 for i in range(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


class Letters:
    """A tokenizer that puts `before` and `after` around the letters' codes."""

    def __init__(self, before: list[int], after: list[int]) -> None:
        self.before, self.after = before, after

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        ids = [ord(c) for c in text]
        return {"input_ids": [*self.before, *ids, *self.after] if add_special_tokens else ids}


def build(kind: str) -> Any:
    torch.manual_seed(0)
    match kind:
        case "decoder":
            ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | ids))
        case "encoder":
            return transformers.BertModel(transformers.BertConfig(**SMALL))
        case "seq2seq":
            sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
            config = transformers.T5Config(
                vocab_size=63, decoder_start_token_id=0, pad_token_id=0, **sizes
            )
            return transformers.T5ForConditionalGeneration(config)
        case "vision":
            sizes = {"embedding_size": 4, "hidden_sizes": [8, 8], "depths": [1, 1]}
            return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    raise AssertionError(kind)


def maker(folder: Path) -> Make:
    """Saves a model with tokenizer in `folder`; gives its source, and itself on the meta device."""

    def made(kind: str, with_tokenizer: bool = True) -> tuple[Source, Any]:
        build(kind).save_pretrained(folder / kind)
        if with_tokenizer:
            tokenizer().save_pretrained(folder / kind)
        source = resolve(str(folder / kind))
        return source, build_meta(load_config(source))

    return made


def text(words: int) -> str:
    return " ".join(f"w{i % WORDS}" for i in range(words))


def refused(run: Callable[[], Any]) -> tuple[str, Exit]:
    with pytest.raises(PrunecError) as raised:
        run()
    assert raised.value.diagnostics[0].help, "every diagnostic has a remedy"
    return raised.value.diagnostics[0].code, raised.value.exit_code


def told(run: Callable[[], Any]) -> Diagnostic:
    """The one thing that is wrong, which is wrong usage and has a remedy."""
    with pytest.raises(PrunecError) as raised:
        run()
    (diagnostic,) = raised.value.diagnostics
    assert raised.value.exit_code == Exit.USAGE
    assert diagnostic.help
    return diagnostic
