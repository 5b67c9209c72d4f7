"""Read damaged files, case by case, and say what came of it.

A reader must either read a file or refuse it with a diagnostic (PrunecError). What it must not do,
whatever the file holds: raise anything else, crash, take more than 10 s or 2 GB, write or delete a
file outside of the folder that it may write, load a pickle, start a program, open a connection.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutations import damaged, damaged_json, damaged_safetensors, damaged_zip

from prunec.ir.diagnostics import PrunecError

__all__ = ["READERS", "Outcome", "Reader", "confine", "fuzz"]

SECONDS = 10
MEMORY = 2 << 30

Files = Mapping[str, bytes]
Damager = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """`make` writes sound files into a folder; those that `damagers` names (by the end of their
    names) are damaged one at a time; `read` reads the folder as prunec does."""

    make: Callable[[Path], None]
    damagers: Mapping[str, Damager]
    read: Callable[[Path], None]


@dataclass
class Outcome:
    """What came of the cases: how many were read, how many refused by which code, and failures
    with the number of their case."""

    cases: int = 0
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)


class Slow(BaseException):
    """A case took too long."""


def fuzz(
    name: str,
    folder: Path,
    cases: range,
    seed: int,
    told: Callable[[int], None] = lambda number: None,
) -> Outcome:
    """Run some cases of a reader in `folder`; `told` hears of each before it starts."""
    reader = READERS[name]
    place = folder / "case"
    place.mkdir(parents=True)
    reader.make(place)
    sound = {p: p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}
    targets = [(p, d) for p in sound for end, d in reader.damagers.items() if p.name.endswith(end)]
    assert targets, f"{name} has nothing to damage"
    reader.read(place)  # the sound files are read
    found = Outcome()
    for number in cases:
        told(number)
        rng = random.Random(f"{seed}:{name}:{number}")
        path, damager = rng.choice(targets)
        path.write_bytes(damager(sound[path], rng))
        _case(reader, place, number, found)
        path.write_bytes(sound[path])
    return found


def _case(reader: Reader, place: Path, number: int, found: Outcome) -> None:
    found.cases += 1
    FORBIDDEN.clear()
    try:
        with _timed(), _silent():
            reader.read(place)
        found.read += 1
    except PrunecError as error:
        found.refused[error.diagnostics[0].code] += 1
        if not error.diagnostics[0].message.strip():
            found.failures.append((number, "a refusal that says nothing"))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-6:]))
        said = " ".join(str(error).split())[:200]
        found.failures.append((number, f"{type(error).__name__}: {said} ({where})"))
    if FORBIDDEN:
        found.failures.append((number, f"forbidden: {FORBIDDEN[0]}"))


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    def late(*_: object) -> None:
        raise Slow(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# -- what no file may make a reader do --------------------------------------------------------

FORBIDDEN: list[str] = []
"""What the running case did."""

CHANGING = {
    "os.remove": (0,), "os.rename": (0, 1), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (0, 1),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "shutil.rmtree": (0,),
}  # fmt: skip
NEVER = {
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
    "socket.connect", "socket.bind", "ctypes.dlopen", "webbrowser.open",
}  # fmt: skip


def confine(folder: Path, memory: int = MEMORY) -> None:
    """From now on this process notes what a case must not do outside of `folder`, and cannot take
    `memory` more bytes than it has. There is no way back."""
    allowed = os.path.realpath(folder)
    sys.dont_write_bytecode = True

    def inside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # an open descriptor
        real = os.path.realpath(os.fsdecode(path))
        return real.startswith((allowed + os.sep, "/dev/", "/proc/")) or real == allowed

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NEVER:
            FORBIDDEN.append(f"{event} {arguments!r:.200}")
        if event == "open" and _writes(arguments[1], arguments[2]) and not inside(arguments[0]):
            FORBIDDEN.append(f"open for writing {arguments[0]!r:.200}")
        for at in CHANGING.get(event, ()):
            if not inside(arguments[at]):
                FORBIDDEN.append(f"{event} {arguments[at]!r:.200}")

    sys.addaudithook(heard)
    with open("/proc/self/statm", encoding="ascii") as stream:
        held = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


# -- readers ----------------------------------------------------------------------------------


def _tiny(folder: Path) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
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
    from prunec.planfile import write_plan

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
    from prunec.planfile import read_plan

    read_plan(folder / "plan.json", SHAPES)


def _make_recipe(folder: Path) -> None:
    from prunec.options import PruneOptions
    from prunec.recipe import write_recipe
    from prunec.target import parse_targets

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
    from prunec.request import prune_options

    prune_options({"recipe": folder / "recipe.yaml", "out": folder / "new"})


def _make_calibration(folder: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    words = "the sea is wide, and the land is old. "
    (folder / "a.txt").write_text(words * 30, encoding="utf-8")
    records = (json.dumps({"text": words * 2, "id": i}) for i in range(8))
    (folder / "b.jsonl").write_text("\n".join(records), encoding="utf-8")
    arrays = {"input_ids": rng.integers(0, 60, (4, 12)), "attention_mask": np.ones((4, 12), int)}
    np.savez(folder / "c.npz", **arrays)
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
    transformers.PreTrainedTokenizerFast(
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
