"""Forty architectures of many kinds: neurons, heads and hidden sizes are pruned as masked.

The models are built as `tools/coverage.py` builds all of transformers' types: small, by a shrinker
that knows no architecture.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from coverage import apart, beside, in_order, read
from coverage_page import ALLOWED, FORMATS, agrees, mark, summary, write_pages
from coverage_row import Row, coverage_of, quietly
from shrink import variants
from specimen import model_types
from transformers import RTDetrConfig

BLOCKS = ("neuron", "query_head", "hidden")
GROUPED = ("neuron", "query_head", "kv_head", "hidden")

EXPECTED: dict[str, tuple[str, ...]] = {
    # decoders: grouped queries, norms of queries and keys, gated attention, sandwich norms
    "llama": GROUPED, "afmoe": GROUPED, "apertus": GROUPED, "arcee": GROUPED,
    # one key-value head, fused queries, keys and values in several layouts, ALiBi, parallel sums
    "falcon": BLOCKS, "gpt2": BLOCKS, "gpt_neox": BLOCKS, "bloom": BLOCKS, "mpt": BLOCKS,
    # latent attention, experts in one tensor, shared experts, attention sinks
    "deepseek_v3": BLOCKS, "mixtral": GROUPED, "gpt_oss": GROUPED, "aria_text": GROUPED,
    # without attention
    "mamba": ("neuron", "hidden"),
    # encoders: layers that share weights, disentangled, local and two-stream attention
    "bert": BLOCKS, "albert": BLOCKS, "deberta": BLOCKS, "modernbert": BLOCKS, "xlnet": BLOCKS,
    # encoder-decoders and speech
    "bart": BLOCKS, "mt5": BLOCKS, "marian": BLOCKS, "whisper": BLOCKS,
    "wav2vec2": ("neuron", "query_head", "channel"),
    # images: patches, windows, pyramids, convolutions
    "vit": BLOCKS, "beit": BLOCKS, "deit": BLOCKS, "dinov2": BLOCKS, "donut-swin": BLOCKS,
    "segformer": BLOCKS, "levit": BLOCKS, "hiera": BLOCKS, "convnext": ("neuron", "channel"),
    "convnextv2": ("neuron", "channel"), "focalnet": ("neuron", "channel"),
    "resnet": ("channel",), "mobilenet_v2": ("channel",), "efficientnet": ("channel",),
    # text beside images, and images in the place of tokens
    "clip": BLOCKS, "llava": GROUPED,
}  # fmt: skip


@cache
def row(kind: str) -> Row:
    quietly()
    return coverage_of(kind)


@pytest.mark.parametrize("kind", EXPECTED)
def test_prunable_and_equal_to_masking(kind: str) -> None:
    found = row(kind)
    assert found["status"] == "traced", found.get("reason")
    roles = found["roles"]
    assert {role: mark(roles.get(role)) for role in EXPECTED[kind]} == dict.fromkeys(
        EXPECTED[kind], "ok"
    )
    for role, held in roles.items():
        assert held.get("difference", 0.0) <= ALLOWED, role
        assert "error" not in held, role
    for role in EXPECTED[kind]:
        assert roles[role]["moved"] > 0, f"{role}: something was removed"


def test_heads_under_a_norm_of_their_group_leave_alike() -> None:
    """A norm over all heads of a group, with the groups in another dimension, can be masked only
    where every group loses the same heads."""
    found = row("mamba2")["roles"]
    assert mark(found["query_head"]) == "ok"
    assert found["query_head"]["moved"] > 0


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_program_is_the_model(kind: str) -> None:
    assert row(kind)["program"]["difference"] <= ALLOWED


@pytest.mark.parametrize("kind", EXPECTED)
def test_no_weight_is_left_out(kind: str) -> None:
    """Each dimension of a weight is in a group, or pinned with a reason."""
    found = row(kind)
    assert found["silent"] == []
    assert found["without_rule"] == {}
    assert all(pin["reason"] for held in found["roles"].values() for pin in held.get("pins", []))


@pytest.mark.parametrize("kind", EXPECTED)
def test_all_at_once_in_all_formats(kind: str) -> None:
    """Every group of every role pruned together equals masking, and ONNX Runtime and TorchScript
    compute the same, at two shapes where the model has no fixed one."""
    found = row(kind)
    assert found["together"]["difference"] <= ALLOWED
    assert found["shapes"] == (1 if found["static"] else 2)
    assert {name: agrees(found, name) for name in FORMATS} == dict.fromkeys(FORMATS, True), found[
        "formats"
    ]


def test_order() -> None:
    """What others are made from comes first, then all tasks in turns; nothing is lost."""
    types = {kind: task for kind, (task, _) in model_types().items()}
    order = in_order(types)
    assert order[0] == "llama"
    assert sorted(order) == sorted(types)
    assert len({types[kind] for kind in order[:60]}) >= 10


def test_what_a_nested_configuration_is_asked_for_stays() -> None:
    """Three stages of the backbone feed the encoder, as many as there were before shrinking."""
    small = next(variants(RTDetrConfig()))
    assert small.backbone_config.out_indices == RTDetrConfig().backbone_config.out_indices
    assert max(small.backbone_config.depths) <= 2


def test_a_run_goes_on(tmp_path: Path) -> None:
    """The last row of each type counts; a line cut off by a kill is passed over."""
    state = tmp_path / "rows.jsonl"
    state.write_text('{"model": "a", "n": 1}\n{"model": "a", "n": 2}\n{"model": "b', "utf-8")
    assert read(state) == {"a": {"model": "a", "n": 2}}
    rival = {"a": {"model": "a", "roles": {"neuron": {"outcome": "equal"}}}}
    assert beside(read(state), rival) == [
        {"model": "a", "n": 2, "rival": {"neuron": {"outcome": "equal"}}}
    ]


def _eats(kind: str) -> Row:
    if kind == "memory":
        bytearray(3 * 2**30)
    while kind == "time":
        pass
    return {"status": "traced"}


@pytest.mark.parametrize(
    ("kind", "status"), [("time", "stopped"), ("memory", "stopped"), ("", "traced")]
)
def test_a_type_is_ended_that_takes_too_much(kind: str, status: str) -> None:
    assert apart(_eats, kind, 1, 2)["status"] == status


def test_forty() -> None:
    assert len(EXPECTED) == 40
    assert set(EXPECTED) <= set(model_types())


def test_pages(tmp_path: Path) -> None:
    """What was found stands in the pages, also what could not be tried."""
    good = {
        "model": "one", "task": "causal_lm", "status": "traced", "silent": [],
        "nodes": 100, "operations": 80,
        "trace_seconds": 1.0, "type_seconds": 0.001, "reachable": 0.9,
        "roles": {"neuron": {"groups": 2, "pinned": 0, "difference": 0.0},
                  "hidden": {"groups": 1, "pinned": 0, "difference": 0.1}},
        "together": {"difference": 0.0, "moved": 1.0},
        "formats": {"onnx": {"difference": 1e-6}, "torchscript": {"error": "no such thing"}},
        "rival": {"neuron": {"outcome": "equal"}, "hidden": {"outcome": "fails", "reason": "why"}},
    }  # fmt: skip
    pin = {"size": 4, "places": ["w[0]"], "reason": "a|b", "where": "%x"}
    pinned = {"groups": 0, "pinned": 1, "pins": [pin]}
    other = {"model": "two", "task": "causal_lm", "status": "traced", "silent": [],
             "nodes": 200, "operations": 160,
             "trace_seconds": 1.0, "type_seconds": 0.002, "reachable": 0.9,
             "roles": {"neuron": pinned}}  # fmt: skip
    lost = {"model": "three", "status": "not built", "reason": "no `timm`"}
    found = summary([good, other, lost])
    assert (found["attempted"], found["built"], found["traced"]) == (3, 2, 2)
    assert (found["neurons_and_heads"], found["hidden"], found["failing"]) == (1, 0, 1)
    assert found["together"] == [1, 1]
    assert found["formats"] == {"onnx": [1, 1], "torchscript": [0, 1]}
    assert found["rival"] == {"models": 1, "whole": 0, "roles": {"equal": 1, "fails": 1}}
    assert (found["fit_exponent"], found["fit_slope"], found["fit_r2"]) == (1.0, 10.0, 1.0)
    write_pages([good, other, lost], tmp_path)
    page = (tmp_path / "coverage.md").read_text(encoding="utf-8")
    cells = "✓ | – | – | – | – | – | **fails** | ✓ | ✓ | **no** | 1 of 2 | 90% | 100 | 1.0 | 1.0"
    assert f"| one | {cells} |" in page
    assert "| one | torchscript: no such thing |  |" in page
    assert "| one | hidden, fails: why |  |" in page
    assert "| two | neuron, w[0]: a\\|b | %x |" in page
    assert "| three | no `timm` |  |" in page
    assert len(json.loads((tmp_path / "coverage.json").read_text())["rows"]) == 3
    assert (tmp_path / "coverage.png").stat().st_size > 1000
