"""`--keep-tokens`: embedding, head, configuration and tokenizer keep a list of tokens."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers
from worded import maker

from prunec.cli.app import main
from prunec.frontends.tokenizer_trim import needed, trimmed

WANTED = [3, 5, 8, 13, 21, 34, 55]
"""Words; 0, 1 and 2 come with them, since the tokenizer and the configuration name them."""


def prune(model: Path, out: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(["prune", str(model), "-o", str(out), *options, "--json"])
    return code, json.loads(printed.getvalue() or "{}"), told.getvalue()


def listed(folder: Path, ids: list[int]) -> str:
    (folder / "ids.txt").write_text("\n".join(map(str, ids)))
    return str(folder / "ids.txt")


@pytest.mark.parametrize("kind", ["decoder", "seq2seq"])
def test_logits_are_those_of_the_kept_tokens(tmp_path: Path, kind: str) -> None:
    model = maker(tmp_path)(kind)[0].path
    code, report, told = prune(
        model, tmp_path / "out", "--keep-tokens", listed(tmp_path, WANTED), "--format",
        "hf,onnx,torchscript", "--verify",
    )  # fmt: skip
    assert code == 0, told
    assert {c["name"]: c["passed"] for c in report["checks"]} == dict.fromkeys(
        ["law 1", "hf", "onnx", "torchscript"], True
    )
    kept = [0, 1, 2, *WANTED]
    made = getattr(
        transformers, json.loads((model / "config.json").read_text())["architectures"][0]
    )
    dense = made.from_pretrained(model).eval()
    small = made.from_pretrained(tmp_path / "out" / "hf").eval()
    assert small.config.vocab_size == len(kept)
    assert type(small) is type(dense)
    new = torch.randint(0, len(kept), (2, 9), generator=torch.Generator().manual_seed(0))
    old = torch.tensor(kept)[new]
    extra = ({"decoder_input_ids": new[:, :4]}, {"decoder_input_ids": old[:, :4]})
    given = extra if kind == "seq2seq" else ({}, {})
    with torch.no_grad():
        found = small(input_ids=new, **given[0]).logits
        wanted = dense(input_ids=old, **given[1]).logits[..., kept]
    assert torch.allclose(found, wanted, atol=1e-6)


def test_the_tokenizer_gives_the_new_ids(tmp_path: Path) -> None:
    model = maker(tmp_path)("decoder")[0].path
    code, _, told = prune(model, tmp_path / "out", "--keep-tokens", listed(tmp_path, WANTED))
    assert code == 0, told
    dense, small = (
        transformers.AutoTokenizer.from_pretrained(f) for f in (model, tmp_path / "out" / "hf")
    )
    kept = [0, 1, 2, *WANTED]
    text = "w0 w2 w5 w52 w0 w31"
    assert [kept[i] for i in small(text)["input_ids"]] == dense(text)["input_ids"]
    assert small.decode(small(text)["input_ids"]) == dense.decode(dense(text)["input_ids"])
    assert len(small) == len(kept)
    assert (small.pad_token_id, small.bos_token_id, small.eos_token_id) == (0, 1, 2)


def test_ids_of_the_configuration_move(tmp_path: Path) -> None:
    """The padding is the last token here, and the table is looked up with it."""
    folder = tmp_path / "model"
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=30, eos_token_id=[31, 5], pad_token_id=39,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    code, _, told = prune(
        folder, tmp_path / "out", "--keep-tokens", listed(tmp_path, [4, 7]), "--verify"
    )
    assert code == 0, told
    written = json.loads((tmp_path / "out" / "hf" / "config.json").read_text())
    # 4 5 7 30 31 39 stay
    assert written["vocab_size"] == 6
    assert (written["bos_token_id"], written["eos_token_id"]) == (3, [4, 1])
    assert written["pad_token_id"] == 5


TEXT = ["the sea is wide and the land is old", "older lands and wider seas", "the widest sea"]


def bytes_and_merges() -> Any:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(TEXT * 9, trainer)
    return made


def pieces_with_scores() -> Any:
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "<s>"], unk_token="<unk>"
    )
    made.train_from_iterator(TEXT * 9, trainer)
    return made


@pytest.mark.parametrize("make", [bytes_and_merges, pieces_with_scores])
def test_texts_of_kept_tokens_are_written_alike(make: Any) -> None:
    dense = make()
    document = json.loads(dense.to_str())
    wanted = set(dense.encode(TEXT[0]).ids)
    kept = sorted(needed(document, wanted))
    assert wanted <= set(kept) < set(range(dense.get_vocab_size()))
    small = tokenizers.Tokenizer.from_str(json.dumps(trimmed(document, kept)))
    assert small.get_vocab_size() == len(kept)
    for text in (TEXT[0], "the sea", "is old and wide"):
        if set(dense.encode(text).ids) <= set(kept):
            assert [kept[i] for i in small.encode(text).ids] == dense.encode(text).ids
        assert small.decode(small.encode(text).ids) == dense.decode(dense.encode(text).ids)


@pytest.mark.parametrize(
    ("ids", "options", "code", "says"),
    [
        ("3 99", (), "P847", "has id 99"),
        ("-1 4", (), "P847", "has id -1"),
        ("w3 4", (), "P847", "token ids"),
        ("3", (), "P847", "fewer than two"),
        ("[3, 4", (), "P847", "cannot be read"),
        ("3 4", ("--target", "params=50%"), "P815", "a run of its own"),
        ("3 4", ("--groups", "neuron"), "P815", "a run of its own"),
    ],
)
def test_refusals(tmp_path: Path, ids: str, options: tuple[str, ...], code: str, says: str) -> None:
    model = maker(tmp_path)("decoder")[0].path
    (tmp_path / "ids").write_text(ids)
    exit_code, _, told = prune(
        model, tmp_path / "out", "--keep-tokens", str(tmp_path / "ids"), *options
    )
    assert exit_code == 2
    assert f"error[{code}]" in told
    assert says in told
    assert "help:" in told
    assert not (tmp_path / "out").exists()


def test_the_role_asks_for_the_list(tmp_path: Path) -> None:
    model = maker(tmp_path)("decoder")[0].path
    code, _, told = prune(model, tmp_path / "out", "--target", "params=50%", "--groups", "vocab")
    assert code == 2
    assert "--keep-tokens" in told
