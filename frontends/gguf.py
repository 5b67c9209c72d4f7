"""A `.gguf` file as a folder of safetensors, converted once and kept in a cache.

transformers dequantizes; the copy is float32 and carries the tokenizer. The cache is
`$PRUNEC_CACHE/gguf`, or `~/.cache/prunec/gguf`; a folder there is named by a hash of the file's
path, size and time and of the versions that converted it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prunec.frontends.gguf_header import check_header
from prunec.ir.diagnostics import PrunecError, fail

__all__ = ["cache_folder", "converted"]

MAGIC = b"GGUF"
CONVERTERS = ("gguf", "torch", "transformers")
BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
LAYOUT = "1"
"""Changes when this module writes its copies differently."""


def cache_folder() -> Path:
    """Where converted files are kept."""
    root = os.environ.get("PRUNEC_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "prunec") / "gguf"


def converted(path: Path) -> Path:
    """The folder with the converted copy of a GGUF file, made now if it was not there.

    Raises P116 when the file is no GGUF or transformers cannot read it.
    """
    _check(path)
    target = cache_folder() / _key(path)
    if target.is_dir():
        return target
    _check_blocks(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise fail(
            "P116",
            f"the cache for converted GGUF files cannot be written: {error.strerror}",
            where=str(target.parent),
            help="set PRUNEC_CACHE to a folder that can",
        ) from error
    try:
        _convert(path, scratch)
        _publish(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _check(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic == MAGIC:
        return
    raise fail("P116", "not a GGUF file", where=str(path), help="fetch the file again")


def _check_blocks(path: Path) -> None:
    """A file holds the blocks that it tells of. Otherwise transformers would make up the others,
    or their number, which can take it minutes."""
    from gguf import GGUFReader

    try:
        check_header(path)
        reader = GGUFReader(path)
        kind = reader.fields["general.architecture"].contents()
        said = int(reader.fields[f"{kind}.block_count"].contents())
    except KeyError as error:
        raise _unreadable(path, ValueError(f"the field {error} is missing")) from error
    except Exception as error:  # the readers of GGUF raise anything
        raise _unreadable(path, error) from error
    numbers = [int(m[1]) for t in reader.tensors if (m := BLOCK.search(t.name))]
    held = max(numbers, default=-1) + 1
    if said <= held:
        return
    raise fail(
        "P116",
        f"this GGUF file tells of {said} blocks and holds {held}",
        where=str(path),
        help="fetch the file again; of a model in several files all are needed, as one",
    )


def _key(path: Path) -> str:
    path = path.resolve()
    status = path.stat()
    versions = [version(name) for name in CONVERTERS]
    parts = [str(path), str(status.st_size), str(status.st_mtime_ns), LAYOUT, *versions]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{path.stem}-{digest[:16]}"


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prunec.frontends.quiet import quiet

    quiet()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
        # The weights are dense now; saving would otherwise ask the quantizer.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the readers of GGUF raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> PrunecError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return fail(
        "P116",
        f"this GGUF file cannot be read: {lines[0] if lines else type(error).__name__}",
        where=str(path),
        help="fetch the file again, or give the original checkpoint as safetensors",
    )


def _publish(scratch: Path, target: Path) -> None:
    """Rename into place; another process may have been faster, which is as good."""
    try:
        scratch.rename(target)
    except OSError:
        if not target.is_dir():
            raise
