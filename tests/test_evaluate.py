"""Quality, size and latency: the protocol, and every format on models small enough to check."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import prunec
from prunec.cli.app import main
from prunec.ir.diagnostics import Exit, PrunecError
from prunec.measuring.artifacts import find_artifacts, for_runtime
from prunec.measuring.evaluate import perplexity
from prunec.measuring.feeds import Array, InputSpec, example_feeds, token_feeds
from prunec.output.own_code import is_own_code

VOCABULARY = ["[UNK]", *(f"w{i}" for i in range(30))]
SIZE = 40
"""Rows of the models' tables; more than the tokenizer has words, as in many real models."""

TEXT = " ".join(f"w{(7 * i * i + i) % 30}" for i in range(100))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer in the layout of a Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def table(seed: int, features: int = SIZE) -> Array:
    return np.random.default_rng(seed).standard_normal((SIZE, features)).astype(np.float32)


def bigram_onnx(
    path: Path,
    weight: Array,
    *,
    output: str = "logits",
    mixed: bool = False,
    scaled: bool = False,
) -> Path:
    """Each token's output is a row of `weight`; `mixed` adds the mean over the whole text, and
    `scaled` rounds all of it to 8 bits with one scale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nodes = [helper.make_node("Gather", ["weight", "input_ids"], ["rows"])]
    last = "rows"
    if mixed:
        nodes.append(helper.make_node("ReduceMean", ["rows", "axes"], ["mean"], keepdims=1))
        nodes.append(helper.make_node("Add", ["rows", "mean"], ["sum"]))
        last = "sum"
    if scaled:
        parts = ["whole", "scale", "zero"]
        nodes.append(helper.make_node("DynamicQuantizeLinear", [last], parts))
        nodes.append(helper.make_node("DequantizeLinear", parts, ["rounded"]))
        last = "rounded"
    nodes.append(helper.make_node("Identity", [last], [output]))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    out_shape = ["batch", "length", weight.shape[1]]
    graph = helper.make_graph(
        nodes,
        "bigram",
        [ids],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, out_shape)],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([1]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


def expected_perplexity(weight: Array, window: int) -> float:
    """The protocol once more, written differently."""
    ids = [VOCABULARY.index(word) for word in TEXT.split()]
    scores = np.log(np.exp(weight) / np.exp(weight).sum(1, keepdims=True))
    pairs = [
        scores[ids[i], ids[i + 1]]
        for start in range(0, len(ids) - window + 1, window)
        for i in range(start, start + window - 1)
    ]
    return math.exp(-sum(pairs) / len(pairs))


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == Exit.DONE
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(list(map(str, arguments)))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    errors = [line for line in shown.err.splitlines() if line.startswith("error[")]
    return code, errors[0][6:10], shown.err


# The protocol


def test_perplexity_of_a_guess_and_of_knowledge() -> None:
    windows = np.arange(12).reshape(2, 6)
    assert perplexity(lambda ids: np.zeros((*ids.shape, 50)), windows) == pytest.approx(50)
    assert perplexity(lambda ids: 1000 * np.eye(50)[ids + 1], windows) == pytest.approx(1)


# Every format


def test_an_onnx_language_model(
    tmp_path: Path, text: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = table(0)
    model = bigram_onnx(tmp_path / "m.onnx", weight)
    arguments = ["eval", model, "--data", text, "--tokenizer", tokenizer, "--window", 16]
    report = document(capsys, *arguments)
    (row,) = report["rows"]
    assert (report["windows"], report["window"]) == (6, 16)
    assert row["params"] == SIZE * SIZE
    assert row["bytes"] == model.stat().st_size
    assert row["perplexity"] == pytest.approx(expected_perplexity(weight, 16), rel=1e-5)
    assert document(capsys, *arguments, "--max-windows", 2)["windows"] == 2
    assert main(list(map(str, arguments))) == Exit.DONE
    assert f"{row['perplexity']:.2f}" in capsys.readouterr().out
    records = tmp_path / "text.jsonl"
    records.write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines()))
    arguments[3] = records
    assert document(capsys, *arguments)["rows"][0]["perplexity"] == row["perplexity"]


def test_every_format_of_a_folder(
    tmp_path: Path, text: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    weight = table(1)
    out = tmp_path / "out"
    bigram_onnx(out / "onnx" / "model.onnx", weight)

    class Bigram(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.from_numpy(weight))

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.table(input_ids)

    (out / "torchscript").mkdir()
    torch.jit.script(Bigram()).save(str(out / "torchscript" / "model.pt"))
    config = transformers.LlamaConfig(
        vocab_size=SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(config)
    llama.save_pretrained(out / "hf")
    for file in tokenizer.iterdir():
        (out / "hf" / file.name).write_bytes(file.read_bytes())
    report = document(capsys, "eval", out, "--data", text, "--against", out / "hf")
    dense, hf, onnx_row, script = report["rows"]
    assert report["window"] == 12  # what the Llama can read
    assert [row["kind"] for row in report["rows"]] == ["hf", "hf", "onnx", "torchscript"]
    assert [row["dense"] for row in report["rows"]] == [True, False, False, False]
    expected = expected_perplexity(weight, 12)
    assert onnx_row["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert script["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert (script["params"], onnx_row["params"]) == (SIZE * SIZE, SIZE * SIZE)
    assert hf["params"] == sum(p.numel() for p in llama.parameters())
    assert hf["perplexity"] == dense["perplexity"] == pytest.approx(SIZE, rel=0.1)


def test_an_encoder_is_compared_with_the_dense_one(
    tmp_path: Path, text: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = table(2, features=8)
    name = "last_hidden_state"
    dense = bigram_onnx(tmp_path / "dense.onnx", weight, output=name, mixed=True)
    turned = bigram_onnx(tmp_path / "turned.onnx", -weight, output=name, mixed=True)
    common = ["--data", text, "--tokenizer", tokenizer, "--window", 16]
    rows = document(capsys, "eval", dense, "--against", dense, *common)["rows"]
    assert rows[1]["similarity"] == pytest.approx(1)
    assert rows[1]["perplexity"] is None
    rows = document(capsys, "eval", turned, "--against", dense, *common)["rows"]
    assert rows[1]["similarity"] == pytest.approx(-1)
    other = bigram_onnx(tmp_path / "other.onnx", table(3, features=6), output=name, mixed=True)
    code, diagnostic, _ = refusal(capsys, "eval", other, "--against", dense, *common)
    assert (code, diagnostic) == (2, "P855")


def test_scores_that_see_later_tokens_are_no_language_model(
    tmp_path: Path, text: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = bigram_onnx(tmp_path / "masked.onnx", table(4), mixed=True)
    common = ["--data", text, "--tokenizer", tokenizer, "--window", 16]
    (row,) = document(capsys, "eval", masked, *common)["rows"]
    assert (row["perplexity"], row["similarity"]) == (None, None)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_scale_of_all_tokens_hides_no_language_model(
    ahead: bool, tmp_path: Path, text: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A last token of its own scale moves all others; a table of the text still knows what comes
    next, and one that repeats what it reads is an encoder."""
    read = np.array([VOCABULARY.index(word) for word in TEXT.split()])
    weight = 0.1 * table(5)
    weight[read[:-1], read[1:] if ahead else read[:-1]] += 5
    weight[read[0]] *= 4
    model = bigram_onnx(tmp_path / "scaled.onnx", weight, scaled=True)
    common = ["--data", text, "--tokenizer", tokenizer, "--window", 16]
    (row,) = document(capsys, "eval", model, *common)["rows"]
    assert (row["perplexity"] is not None) is ahead
    if ahead:
        assert 1 < row["perplexity"] < 10


def test_what_eval_refuses(
    tmp_path: Path, text: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = bigram_onnx(tmp_path / "m.onnx", table(0))
    code, diagnostic, said = refusal(capsys, "eval", model, "--data", text)
    assert (code, diagnostic) == (2, "P856")
    assert "--tokenizer DIR" in said
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:100])
    arguments = ["--data", text, "--tokenizer", tokenizer]
    assert refusal(capsys, "eval", model, *arguments)[:2] == (2, "P132")  # 100 of 1,024 tokens
    assert refusal(capsys, "eval", broken, *arguments, "--window", 16)[:2] == (1, "P240")
    arguments = ["--data", text, "--tokenizer", tmp_path / "nothing"]
    assert refusal(capsys, "eval", model, *arguments)[:2] == (1, "P133")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    arguments = ["--data", empty, "--tokenizer", tokenizer]
    assert refusal(capsys, "eval", model, *arguments)[:2] == (2, "P130")
    arguments = ["--data", text, "--tokenizer", tokenizer, "--max-windows", 0]
    assert refusal(capsys, "eval", model, *arguments)[:2] == (2, "P811")


def test_only_its_own_code_is_trusted(tmp_path: Path) -> None:
    own = Path(prunec.__file__).parent / "backends" / "modeling_prunec.py"
    config, code = tmp_path / "config.json", tmp_path / "modeling_prunec.py"
    config.write_text('{"auto_map": {"AutoModel": "modeling_prunec.PrunedX"}}')
    assert not is_own_code(tmp_path)
    code.write_bytes(own.read_bytes())
    assert is_own_code(tmp_path)
    config.write_text('{"auto_map": {"AutoModel": "x/y--modeling_prunec.PrunedX"}}')
    assert not is_own_code(tmp_path)
    config.write_text('{"auto_map": {"AutoModel": "other.PrunedX"}}')
    assert not is_own_code(tmp_path)
    config.write_text("{}")
    code.write_bytes(own.read_bytes() + b"import os")
    assert not is_own_code(tmp_path)


# Bench


def test_bench_compares_with_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = bigram_onnx(tmp_path / "first.onnx", table(0))
    second = bigram_onnx(tmp_path / "out" / "onnx" / "model.onnx", table(0, features=4))
    options = ["--batch", 2, "--length", 5, "--repeat", 3, "--threads", 1]
    report = document(capsys, "bench", first, tmp_path / "out", *options)
    assert [row["runtime"] for row in report["rows"]] == ["onnxruntime"] * 2
    assert [row["params"] for row in report["rows"]] == [SIZE * SIZE, SIZE * 4]
    one, two = report["rows"]
    assert one["speedup"] == 1.0
    assert two["speedup"] == pytest.approx(one["median"] / two["median"])
    assert two["tokens_per_second"] == pytest.approx(10 / two["median"])
    assert two["fastest"] <= two["median"] <= two["slowest"]
    assert main(["bench", str(first), str(second), "--repeat", "1"]) == Exit.DONE
    assert "1.00x" in capsys.readouterr().out


def test_a_model_of_fixed_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = bigram_onnx(tmp_path / "m.onnx", table(0))
    fixed = onnx.load(model)
    for dim, size in zip(fixed.graph.input[0].type.tensor_type.shape.dim, (2, 3), strict=True):
        dim.dim_value = size
    onnx.save(fixed, tmp_path / "fixed.onnx")
    report = document(capsys, "bench", tmp_path / "fixed.onnx", "--repeat", 1)
    (row,) = report["rows"]
    assert row["tokens_per_second"] == pytest.approx(6 / row["median"])
    assert main(["bench", str(model), str(tmp_path / "fixed.onnx"), "--repeat", "1"]) == Exit.DONE
    assert "different sizes: [(1, 128), (2, 3)]" in capsys.readouterr().err


def test_a_model_that_fails_on_its_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = bigram_onnx(tmp_path / "m.onnx", table(0)[:4])
    assert refusal(capsys, "bench", small)[:2] == (1, "P866")


def test_what_bench_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = bigram_onnx(tmp_path / "m.onnx", table(0))
    assert refusal(capsys, "bench", model, "--runtime", "torch")[:2] == (2, "P864")
    assert refusal(capsys, "bench", tmp_path / "no.onnx")[:2] == (1, "P100")
    (tmp_path / "bad.pt").write_bytes(b"not a zip")
    assert refusal(capsys, "bench", tmp_path / "bad.pt")[:2] == (1, "P861")


def test_openvino(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = bigram_onnx(tmp_path / "m.onnx", table(0))
    if importlib.util.find_spec("openvino") is None:
        code, diagnostic, said = refusal(capsys, "bench", model, "--runtime", "openvino")
        assert (code, diagnostic) == (1, "P862")
        assert "pip install openvino" in said
        return
    report = document(capsys, "bench", model, "--runtime", "openvino", "--repeat", 1)
    assert report["rows"][0]["runtime"] == "openvino"


def test_the_format_a_runtime_can_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    bigram_onnx(out / "onnx" / "model.onnx", table(0))
    (out / "hf").mkdir()
    found = find_artifacts(str(out))
    assert [artifact.kind for artifact in found] == ["hf", "onnx"]
    assert for_runtime(found, "out", None).kind == "onnx"
    assert for_runtime(found, "out", "torch").kind == "hf"


# Inputs


def test_inputs_by_name_and_dtype() -> None:
    batch_length = ("batch", "length")
    specs = [
        InputSpec("input_ids", "int64", batch_length),
        InputSpec("attention_mask", "int32", batch_length),
        InputSpec("token_type_ids", "int64", batch_length),
        InputSpec("position_ids", "int64", batch_length),
        InputSpec("past_key_values.0.key", "float32", ("batch", 3, "past", 4)),
        InputSpec("pixel_values", "float32", ("batch", 3, 8, 8)),
        InputSpec("use_cache_branch", "bool", (1,)),
    ]
    feeds = example_feeds(specs, batch=2, length=5)
    assert {name: x.shape for name, x in feeds.items()} == {
        "input_ids": (2, 5),
        "attention_mask": (2, 5),
        "token_type_ids": (2, 5),
        "position_ids": (2, 5),
        "past_key_values.0.key": (2, 3, 0, 4),
        "pixel_values": (2, 3, 8, 8),
        "use_cache_branch": (1,),
    }
    assert [str(x.dtype) for x in feeds.values()] == [spec.dtype for spec in specs]
    assert feeds["attention_mask"].all()
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    tokens = np.array([[5, 6, 7]])
    assert token_feeds(specs, tokens)["input_ids"].tolist() == [[5, 6, 7]]
    with pytest.raises(PrunecError, match="does not read text"):
        token_feeds(specs[5:], tokens)
