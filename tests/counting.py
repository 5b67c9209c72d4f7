"""A tiny decoder that has learned to count, and the command line run on it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from worded import WORDS, text, tokenizer

from prunec.cli.app import main
from prunec.frontends.text import windows
from prunec.recovery.models import open_model

__all__ = ["LENGTH", "SIZES", "counter", "loss", "pruned_counter", "refused", "run"]

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": WORDS + 3,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LENGTH = 16


def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of a command with --json."""
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = main([*map(str, arguments), "--json"])
    assert printed.getvalue(), said.getvalue()
    return code, json.loads(printed.getvalue())


def refused(*arguments: object) -> tuple[int, str, str]:
    """Exit code, diagnostic code and message of a command that fails, for one reason."""
    code, document = run(*arguments)
    (said,) = document["error"]["diagnostics"]
    assert said["help"], "every diagnostic has a remedy"
    return code, said["code"], said["message"]


def counter(root: Path) -> None:
    """Save the model as `dense` in a folder, with its tokenizer, and a text as `count.txt`."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(80):
        tokens = (torch.arange(LENGTH)[None] + 13 * torch.arange(step, step + 8)[:, None]) % WORDS
        model(input_ids=tokens + 3, labels=tokens + 3).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(root / "dense")
    tokenizer().save_pretrained(root / "dense")
    (root / "count.txt").write_text(text(2000))


def pruned_counter(root: Path) -> None:
    """What `counter` saves, and the model pruned to half in folders named after both layouts."""
    counter(root)
    for layout in ("uniform", "per-layer"):
        code, _ = run(
            "prune", root / "dense", "-o", root / layout, "--target", "blocks=50%", "--method",
            "magnitude", "--calibration", "none", "--layout", layout,
        )  # fmt: skip
        assert code == 0


def loss(folder: Path) -> float:
    """The mean negative log-likelihood of the whole text."""
    model = open_model(str(folder), trust=False).model
    ids = torch.from_numpy(windows(text(2000), tokenizer(), LENGTH))
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)
