"""Load a model for the passes: its program coupled, its weights opened lazily."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.engines.engine import Engine
from prunec.frontends.source import Source
from prunec.ir.axes import Indices
from prunec.ir.diagnostics import Diagnostic
from prunec.ir.graph import Graph
from prunec.output.own_code import find_source
from prunec.passes.cost import Cost
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling
from prunec.passes.overlaid import Overlaid
from prunec.passes.parted import Parted, is_parted
from prunec.passes.profile import Array, Weights
from prunec.passes.regions import Region, find_regions
from prunec.passes.remove import remove
from prunec.progress import Progress
from prunec.ranks import world_size
from prunec.resume.hashes import source_hash

if TYPE_CHECKING:
    from prunec.backends.hf_depth import Shallower
    from prunec.backends.hf_fields import Family
    from prunec.engines.workers import Workers
    from prunec.frontends.onnx import OnnxProgram
    from prunec.timing.clock import Clock

__all__ = ["Loaded", "Overlaid", "ProgramWeights", "SlicedWeights", "load"]

DTYPES = {"f64": np.float64, "f32": np.float32, "f16": np.float16}


@dataclass(frozen=True)
class Loaded:
    """A model as the passes see it. `stored` are the checkpoint's tensors in their own dtype,
    `weights` everything that the program uses in the dtype that it computes in, `digest` the hash
    of the source, which takes a while, `examples` inputs that a module in memory came with. Of an
    ONNX file `file` is what was read, and there is neither `config` nor `model`.

    Once regions are `removed`, `coupling` and `cost` are those of the smaller program, under the
    names of the `whole` model, and `shallower` is the stock config without its layers, if any.
    `clock` tells how long the program takes, where that matters, `step` is its decoding step where
    that was made already, `workers` judge the plans of a search where there are some.
    """

    source: Source
    config: Any
    model: Any
    coupling: Coupling
    cost: Cost
    stored: Weights
    weights: Weights
    digest: Future[str] | None = None
    examples: tuple[Mapping[str, Array], ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    file: OnnxProgram | None = None
    removed: tuple[Region, ...] = ()
    before: Loaded | None = None
    shallower: Shallower | None = None
    clock: Clock | None = field(default=None, repr=False, compare=False)
    step: Loaded | None = field(default=None, repr=False, compare=False)
    workers: Workers | None = field(default=None, repr=False, compare=False)

    @cached_property
    def engine(self) -> Engine:
        """What runs the program; several processes share the work."""
        if world_size() == 1:
            return self._engine
        from prunec.engines.shared import SharedEngine

        return SharedEngine(self._engine)

    @property
    def _engine(self) -> Engine:
        if self.file is not None:
            from prunec.engines.ort_engine import OrtEngine

            whole = replace(self.file, graph=self.whole.graph)
            return OrtEngine(whole, self.left, self.removed)
        if self.workers is not None:
            from prunec.engines.fanned_engine import FannedEngine

            return FannedEngine(self.workers)
        from prunec.engines.torch_engine import TorchEngine

        return TorchEngine()

    @cached_property
    def left(self) -> OnnxProgram:
        """The file without the regions that are removed."""
        assert self.file is not None, "only files are edited"
        if not self.removed:
            return replace(self.file, graph=self.graph)
        from prunec.output.onnx_file import shortened

        return shortened(self.file, self.graph)

    @property
    def graph(self) -> Graph:
        return self.coupling.graph

    @property
    def whole(self) -> Loaded:
        """The model before regions were removed."""
        return self.before or self

    @cached_property
    def regions(self) -> dict[str, Region]:
        """What may go as a whole, by name."""
        return {region.name: region for region in find_regions(self.whole.coupling)}

    def without(self, regions: Iterable[Region]) -> Loaded:
        """The whole model without these regions, and no others; `shallower` is left open."""
        gone, whole = tuple(regions), self.whole
        coupling = remove(whole.coupling, gone)
        return replace(whole, coupling=coupling, cost=Cost(coupling), removed=gone, before=whole)

    @cached_property
    def family(self) -> Family | None:
        """Which configurations the model's class can be built with, from that of `shallower` where
        layers went; None for a file that is edited as it is."""
        if self.source.kind == "onnx":
            return None
        from prunec.backends.hf_build import builder
        from prunec.backends.hf_fields import Family

        config = self.config if self.shallower is None else self.shallower.config
        return Family(config, builder(type(self.model)))

    def checkpoint_name(self, name: str) -> str:
        """What a parameter of the program is called in a checkpoint."""
        return name if self.shallower is None else self.shallower.renamed(name)


class ProgramWeights(Mapping[str, Array]):
    """What a program reads: parameters of the checkpoint, computed buffers and constants, each
    cast to the dtype that the graph says. Nothing is read before it is asked for."""

    def __init__(self, graph: Graph, stored: Weights, computed: Weights) -> None:
        self.graph, self.stored, self.computed = graph, stored, computed

    def __getitem__(self, name: str) -> Array:
        return self._cast(name, (self.stored if name in self.stored else self.computed)[name])

    def _cast(self, name: str, array: Array) -> Array:
        parameter = self.graph.parameters.get(name)
        wanted = DTYPES.get(parameter.type.dtype) if parameter else None
        return array if wanted is None or array.dtype == wanted else array.astype(wanted)

    def parted(self, name: str) -> bool:
        return name in self.stored and is_parted(self.stored, name)

    def rows(self, name: str, where: slice | Indices) -> Array:
        assert isinstance(self.stored, Parted)
        return self._cast(name, self.stored.rows(name, where))

    def __iter__(self) -> Iterator[str]:
        return iter(self.graph.parameters)

    def __len__(self) -> int:
        return len(self.graph.parameters)


class SlicedWeights(Mapping[str, Array]):
    """Weights of the smaller program: the kept indices of each, taken when asked for."""

    def __init__(self, base: Weights, kept: Mapping[str, Mapping[int, Array]]) -> None:
        self.base, self.kept = base, kept

    def __getitem__(self, name: str) -> Array:
        array = self.base[name]
        for dim, indices in self.kept.get(name, {}).items():
            array = np.take(array, indices, dim)
        return array

    def parted(self, name: str) -> bool:
        return is_parted(self.base, name)

    def rows(self, name: str, where: slice | Indices) -> Array:
        assert isinstance(self.base, Parted)
        kept = dict(self.kept.get(name, {}))
        array = self.base.rows(name, kept.pop(0)[where] if 0 in kept else where)
        for dim, indices in kept.items():
            array = np.take(array, indices, dim)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def load(
    model: str,
    *,
    trust_remote_code: bool,
    need_weights: bool,
    progress: Progress,
    hashed: bool = False,
    caches: bool = False,
) -> Loaded:
    """Resolve MODEL, trace it without weights and couple its dimensions.

    With `hashed` the hash of the source is on its way; with `caches` those of a file may change.

    Raises PrunecError for anything that the user can mend: no such model, a damaged or unsafe
    checkpoint, an unknown configuration, a model that cannot be traced.
    """
    with progress.step("Reading the model"):
        source = find_source(model, need_weights=need_weights, trust_remote_code=trust_remote_code)
    if source.kind == "onnx":
        return _file(source, progress, hashed, caches)
    return _checkpoint(source, need_weights, progress, hashed)


def _checkpoint(source: Source, need_weights: bool, progress: Progress, hashed: bool) -> Loaded:
    """A configuration and its weights, traced on the meta device."""
    trust = source.trust_remote_code
    from prunec.frontends import checkpoint, hf
    from prunec.frontends.torch_hf import trace_hf
    from prunec.ir.dialects.aten import ATEN

    seconds: dict[str, float] = {}
    with progress.step("Reading the configuration"):
        digest = source_hash(source.path) if hashed else None
        config = hf.load_config(source, trust)
        module = hf.build_meta(config, trust_remote_code=trust)
        stored: Weights = checkpoint.open_parameters(module, source) if need_weights else {}
    with progress.step("Tracing the program"):
        start = time.perf_counter()
        traced = trace_hf(module)
        seconds["trace"] = time.perf_counter() - start
    with progress.step("Coupling dimensions"):
        start = time.perf_counter()
        coupling = couple(traced.graph, ATEN)
        seconds["couple"] = time.perf_counter() - start
    buffers = hf.real_buffers(config, trust_remote_code=trust) if need_weights else {}
    computed = {**buffers, **traced.constants}
    return Loaded(
        source,
        config,
        module,
        coupling,
        Cost(coupling),
        stored,
        ProgramWeights(coupling.graph, stored, computed),
        digest,
        warnings=traced.warnings,
        seconds=seconds,
    )


def _file(source: Source, progress: Progress, hashed: bool, caches: bool) -> Loaded:
    """An ONNX file, which says itself what it computes. Hashing starts before what reads the file
    is imported: it finds out itself which data may be read."""
    digest = source_hash(source.path) if hashed else None
    from prunec.frontends.onnx import read_onnx
    from prunec.ir.dialects.onnx import ONNX

    seconds: dict[str, float] = {}
    with progress.step("Typing the program"):
        start = time.perf_counter()
        file = read_onnx(source.path)
        seconds["read"] = time.perf_counter() - start
    with progress.step("Coupling dimensions"):
        start = time.perf_counter()
        coupling = couple(file.graph, ONNX, caches=caches)
        seconds["couple"] = time.perf_counter() - start
    return Loaded(
        source,
        None,
        None,
        coupling,
        Cost(coupling),
        file.weights,
        file.weights,
        digest,
        seconds=seconds,
        file=file,
    )
