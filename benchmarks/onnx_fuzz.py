"""Mutate ONNX files: each is read and typed, or refused with a diagnostic, within five seconds.

    python benchmarks/onnx_fuzz.py --cases 20000 model.onnx ...
    python benchmarks/onnx_fuzz.py --first 12000 --cases 20000 model.onnx ...    go on from there

Of every second case bytes are changed, dropped and doubled at seeded places; of the others, fields:
what nodes read and give, operators, attributes, shapes, sizes, types, order. A case depends on the
seed and its number alone. The five seconds are of processor time, so that other work on the machine
does not count; a case that waits is ended after twenty minutes by the clock on the wall. Prints how
many were read and refused; exits with 1 at the first traceback or slow case, whose bytes are left
in the current folder.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

import numpy as np
import onnx

from prunec.frontends.onnx import read_onnx
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.onnx import ONNX
from prunec.passes.couple import couple

T = TypeVar("T")
SLOW, WAITING = 5.0, 1200.0
TOLD_EVERY = 500


class Hangs(BaseException):
    """Raised inside of a case that is over its time; no handler of the reader's catches it."""


def mutated(model: onnx.ModelProto, data: bytes, case: int, seed: int) -> bytes:
    rng = np.random.default_rng((seed, case))
    if case % 2:
        return _bytes_mutated(data, rng)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(int(rng.integers(1, 3))):
        _field_mutated(changed, rng)
    return bytes(changed.SerializeToString())


def _bytes_mutated(data: bytes, rng: np.random.Generator) -> bytes:
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(0, max(len(found), 1)))
        length = int(rng.integers(1, 17))
        match int(rng.integers(0, 4)):
            case 0:
                found[at : at + length] = rng.bytes(len(found[at : at + length]))
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = found[at : at + length]
            case _:
                found = found[: max(1, at)] if rng.random() < 0.1 else found
    return bytes(found)


def _field_mutated(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    graph = model.graph
    first, second = sorted(int(i) for i in rng.integers(0, len(graph.node), 2))
    earlier, node = graph.node[first], graph.node[second]
    match int(rng.integers(0, 12)):
        case 0 | 1 | 2 if node.input and earlier.input:
            at = int(rng.integers(0, len(node.input)))
            node.input[at] = _one((*earlier.input, *node.input, ""), rng)
        case 3 | 4 | 5 if node.attribute:
            _attribute_mutated(_one(node.attribute, rng), rng)
        case 6 if node.attribute:
            del node.attribute[int(rng.integers(0, len(node.attribute)))]
        case 7:
            node.op_type = earlier.op_type
        case 8 if graph.initializer:
            _stored_mutated(_one(graph.initializer, rng), rng)
        case 9 if len(graph.input) and (shape := _one(graph.input, rng).type.tensor_type.shape.dim):
            _one(shape, rng).dim_value = _number(rng)
        case 10:
            _disordered(graph, node, earlier, rng)
        case _:
            node.input.extend(earlier.input[:1])


def _disordered(
    graph: onnx.GraphProto, node: onnx.NodeProto, earlier: onnx.NodeProto, rng: np.random.Generator
) -> None:
    match int(rng.integers(0, 3)):
        case 0 if node.output and earlier.output:
            node.output[0] = earlier.output[0]
        case 1:
            graph.node.remove(earlier)
        case _:
            graph.node.append(node)


def _stored_mutated(tensor: onnx.TensorProto, rng: np.random.Generator) -> None:
    """Another type or size; or, where it is a shape or an index, another value."""
    if tensor.data_type == onnx.TensorProto.INT64 and tensor.raw_data:
        values = np.frombuffer(tensor.raw_data, np.int64).copy()
        values[int(rng.integers(0, len(values)))] = _number(rng)
        tensor.raw_data = values.tobytes()
    elif tensor.dims and rng.random() < 0.5:
        tensor.dims[int(rng.integers(0, len(tensor.dims)))] = _number(rng)
    else:
        tensor.data_type = int(rng.integers(0, 25))


def _attribute_mutated(attribute: onnx.AttributeProto, rng: np.random.Generator) -> None:
    if attribute.ints:
        attribute.ints[int(rng.integers(0, len(attribute.ints)))] = _number(rng)
    elif attribute.HasField("i"):
        attribute.i = _number(rng)
    else:
        attribute.type = int(rng.integers(0, 15))  # type: ignore[assignment]


def _number(rng: np.random.Generator) -> int:
    return _one((-(2**63), -3, -1, 0, 1, 2, 7, 64, 2**31, 2**63 - 1), rng)


def _one(found: Sequence[T], rng: np.random.Generator) -> T:
    return found[int(rng.integers(0, len(found)))]


def is_read(path: Path) -> bool:
    """Whether the file is read and typed; False when it is refused. Raises what else happens."""
    signal.setitimer(signal.ITIMER_PROF, SLOW)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        couple(read_onnx(path).graph, ONNX)
        return True
    except PrunecError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _over(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGPROF:
        raise Hangs(f"more than {SLOW:.0f} s of processor time")
    raise Hangs(f"more than {WAITING:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--cases", type=int, default=20_000, help="number of the last, and one")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    originals = [path.read_bytes() for path in given.files]
    models = [onnx.load_model_from_string(data) for data in originals]
    signal.signal(signal.SIGPROF, _over)
    signal.signal(signal.SIGALRM, _over)
    read = refused = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for case in range(given.first, given.cases):
            at = case // 2 % len(originals)
            data = mutated(models[at], originals[at], case, given.seed)
            path.write_bytes(data)
            start = time.process_time()
            try:
                found = is_read(path)
            except BaseException:
                Path("onnx-fuzz-failed.onnx").write_bytes(data)
                print(f"case {case} of {given.files[at]}", file=sys.stderr)
                traceback.print_exc()
                return 1
            read, refused = read + found, refused + (not found)
            slowest = max(slowest, time.process_time() - start)
            if (case + 1) % TOLD_EVERY == 0:
                told = f"{case + 1} cases: {read} read, {refused} refused, slowest {slowest:.2f} s"
                print(told, file=sys.stderr, flush=True)
    cases = given.cases - given.first
    print(
        f"{cases} cases: {read} read, {refused} refused, slowest {slowest:.2f} s of processor time"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
