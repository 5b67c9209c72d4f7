"""Leave tokens out: embedding, output head, configuration and tokenizer keep a list of ids.

Which tokens a model needs is for its user to say. Those that the tokenizer needs to write them,
and those that the configuration names, stay with them. Kept tokens get new ids, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunec.backends.hf_build import changed
from prunec.frontends.tokenizer_trim import needed, trimmed
from prunec.ir.axes import Atom, Selection, atoms
from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.ir.graph import Graph, Op, Ref
from prunec.options.prune import PruneOptions
from prunec.passes.compress import Compressed
from prunec.passes.coupling import Coupling, Group
from prunec.passes.rewrite import Rewritten, rewrite
from prunec.planning.layout import settle_layout
from prunec.runs.loading import Loaded

if TYPE_CHECKING:
    from prunec.verbs.pipeline import Pruned

__all__ = ["prune_vocabulary", "trim_files"]

Ids = npt.NDArray[np.int64]

TOKENIZER = "tokenizer.json"
SUPERSEDED = (
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "added_tokens.json",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""Forms of the whole tokenizer beside tokenizer.json."""

EMBEDDING, PADDING = "aten.embedding", 2
"""The operation that looks tokens up, and the place of an id among its arguments."""


def prune_vocabulary(options: PruneOptions, loaded: Loaded) -> Pruned:
    """The model with the tokens that `options.keep_tokens` lists and those that they need.

    Raises PrunecError (exit 2) for a list that cannot be read, ids out of range, a model that
    reads no tokens, or a tokenizer in a form that cannot be made smaller.
    """
    from prunec.verbs.pipeline import Pruned

    assert options.keep_tokens is not None, "options are settled"
    names = _axes(loaded.coupling)
    if not names:
        raise fail(
            "P408", "the model reads no tokens", where=loaded.source.name,
            help="leave --keep-tokens out", exit_code=Exit.USAGE,
        )  # fmt: skip
    coupling = _released(loaded.coupling, names)
    size = coupling.by_name[names[0]].size
    kept = _kept(loaded, read_tokens(options.keep_tokens, size), size)
    config = _renumbered(loaded.config, kept, size)
    loaded = replace(loaded, coupling=coupling, config=config)
    selections = {name: Selection(kept) for name in names}
    rewritten = rewrite(coupling, selections)
    graph = _repadded(rewritten.graph, coupling, names, kept)
    written = "hf" in options.formats and not options.dry_run
    counts = dict.fromkeys(names, len(kept))
    return Pruned(
        loaded=loaded,
        options=options,
        family=loaded.family,
        compressed=Compressed(selections),
        rewritten=Rewritten(graph, rewritten.kept),
        replaced={},
        layout=_layout(loaded, options, counts, names, kept) if written else None,
        tokens=kept,
        warnings=loaded.warnings,
        seconds=dict(loaded.seconds),
    )


def read_tokens(path: Path, size: int) -> Ids:
    """Token ids, one a line or as a JSON list, ascending; P847 for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if text.lstrip().startswith("[") else text.split()
        ids = sorted({int(str(item)) for item in found})
    except (OSError, ValueError) as error:
        raise _bad(path, f"cannot be read as token ids: {' '.join(str(error).split())}") from error
    outside = [number for number in ids if not 0 <= number < size]
    if outside:
        raise _bad(path, f"has id {outside[0]}, and the vocabulary has {size:,} tokens")
    if len(ids) < 2:
        raise _bad(path, "lists fewer than two tokens")
    return np.asarray(ids, dtype=np.int64)


def _bad(path: Path, problem: str) -> PrunecError:
    return fail(
        "P847",
        f"the list of tokens {problem}",
        where=str(path),
        help="give a file with ids from 0 on, one a line or as a JSON list",
        exit_code=Exit.USAGE,
    )


def _axes(coupling: Coupling) -> list[str]:
    """The axes that tokens select from, and those of outputs with one number for each of them."""
    graph = coupling.graph
    inputs = {v.name for v in graph.inputs if v.name.endswith("input_ids")}
    looked_up = [graph.types[op.args[0].name].axes[0] for op in _look_ups(graph, inputs)
                 if isinstance(op.args[0], Ref)]  # fmt: skip
    found = {axis.name: axis.size for axis in looked_up if isinstance(axis, Atom)}
    ends = [graph.types[value].axes[-1:] for _, value in graph.outputs]
    last = [axis for axes in ends for axis in axes if isinstance(axis, Atom)]
    found |= {axis.name: axis.size for axis in last if axis.size in found.values()}
    pinned = {pin.axis for pin in coupling.pinned}
    return [name for name in found if name in pinned]


def _look_ups(graph: Graph, inputs: set[str]) -> Iterator[Op]:
    for op in graph.ops:
        if op.name.startswith(EMBEDDING) and set(op.operands) & inputs:
            yield op


def _released(coupling: Coupling, names: Sequence[str]) -> Coupling:
    """The coupling with these pins as groups: who lists the ids knows what they mean."""
    freed = tuple(
        Group(pin.axis, "vocab", pin.size, pin.places)
        for pin in coupling.pinned
        if pin.axis in names
    )
    pinned = tuple(pin for pin in coupling.pinned if pin.axis not in names)
    return replace(coupling, groups=(*coupling.groups, *freed), pinned=pinned)


def _kept(loaded: Loaded, wanted: Ids, size: int) -> Ids:
    """The wanted ids and what comes with them, ascending."""
    ids = {*wanted.tolist(), *(n for _, n in _named(loaded.config.to_dict()) if 0 <= n < size)}
    file = _tokenizer(loaded)
    if file is not None:
        ids = {n for n in needed(json.loads(file.read_text(encoding="utf-8")), ids) if n < size}
    return np.asarray(sorted(ids), dtype=np.int64)


def _tokenizer(loaded: Loaded) -> Path | None:
    """The tokenizer's file; None when the model has no tokenizer. P848 for one in another form."""
    if loaded.source.kind != "hf" or not loaded.source.tokenizer:
        return None
    file = loaded.source.folder / TOKENIZER
    if file.is_file():
        return file
    raise fail(
        "P848",
        f"the tokenizer has no {TOKENIZER}",
        where=str(loaded.source.folder),
        help="AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL) writes one",
        exit_code=Exit.USAGE,
    )


def _named(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Fields of a configuration that hold token ids: their paths, and the ids one by one."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _named(value, f"{prefix}{name}.")
        elif str(name).endswith("_token_id"):
            listed = value if isinstance(value, list) else [value]
            yield from ((prefix + name, n) for n in listed if type(n) is int)


def _renumbered(config: Any, kept: Ids, size: int) -> Any:
    """The configuration with new token ids."""
    data = config.to_dict()
    paths = {path for path, n in _named(data) if 0 <= n < size}
    return changed(config, {path: _new(_at(data, path), kept) for path in paths})


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data[key]
    return data


def _new(value: Any, kept: Ids) -> Any:
    """New ids in the place of old ones; what is no kept id stays."""
    if isinstance(value, list):
        return [_new(item, kept) for item in value]
    if type(value) is not int or value not in kept:
        return value
    return int(np.searchsorted(kept, value))


def _repadded(graph: Graph, coupling: Coupling, names: Sequence[str], kept: Ids) -> Graph:
    """The program with the padding's new id where tables are looked up."""

    def op(found: Op) -> Op:
        if not found.name.startswith(EMBEDDING) or len(found.args) <= PADDING:
            return found
        table, old = found.args[0], found.args[PADDING]
        if not isinstance(table, Ref) or type(old) is not int or old < 0:
            return found
        (first, *_) = coupling.graph.types[table.name].axes
        if not any(a.name in names for a in atoms(first)):
            return found
        args = (*found.args[:PADDING], _new(old, kept), *found.args[PADDING + 1 :])
        return replace(found, args=args)

    return graph.with_ops(tuple(map(op, graph.ops)))


def _layout(
    loaded: Loaded,
    options: PruneOptions,
    counts: Mapping[str, int],
    names: Sequence[str],
    kept: Ids,
) -> Any:
    """The stock configuration. It is compared with the program under the new ids."""
    graph = _repadded(loaded.graph, loaded.coupling, names, kept)
    renumbered = replace(loaded, coupling=replace(loaded.coupling, graph=graph))
    return settle_layout(renumbered, options.layout, counts)


def trim_files(folder: Path, kept: Ids) -> None:
    """Give the tokenizer and the generation settings in a checkpoint's folder the new ids."""
    file = folder / TOKENIZER
    if file.is_file():
        _rewrite(file, lambda found: trimmed(found, kept.tolist()))
        for name in SUPERSEDED:
            (folder / name).unlink(missing_ok=True)
    _rewrite(folder / "tokenizer_config.json", lambda found: _decoder(found, kept))
    _rewrite(folder / "generation_config.json", lambda found: _generation(found, kept))


def _rewrite(file: Path, change: Any) -> None:
    if not file.is_file():
        return
    found = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(found, ensure_ascii=False, indent=2), encoding="utf-8")


def _decoder(found: dict[str, Any], kept: Ids) -> dict[str, Any]:
    added = found.get("added_tokens_decoder")
    if not added:
        return found
    return found | {
        "added_tokens_decoder": {str(_new(int(n), kept)): token for n, token in added.items()}
    }


def _generation(found: dict[str, Any], kept: Ids) -> dict[str, Any]:
    named = {path for path, _ in _named(found)}
    return found | {path: _new(found[path], kept) for path in named if "." not in path}
