"""Tell the loading code that prunec itself wrote beside a checkpoint from anybody else's.

A checkpoint whose widths differ by layer brings Python code. It may run without
`--trust-remote-code` when every Python file in the folder is, byte for byte, the one that this
prunec writes, and the configuration refers to nothing else.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from prunec.frontends.source import Source, resolve

__all__ = ["find_source", "is_own_code"]

OWN = "prunec.backends.modeling_prunec"
ELSEWHERE = "--"
"""In `auto_map`, what stands between another repository and the code in it."""


def find_source(
    model: str, *, need_weights: bool = True, trust_remote_code: bool = False
) -> Source:
    """Where MODEL lies, as `resolve` finds it; code that is prunec's own may run unasked."""
    source = resolve(model, need_weights=need_weights, trust_remote_code=trust_remote_code)
    if source.kind == "hf" and is_own_code(source.folder):
        return replace(source, trust_remote_code=True)
    return source


def is_own_code(folder: Path) -> bool:
    """Whether all code that loading the model in `folder` would run is prunec's own."""
    found = list(folder.rglob("*.py"))
    config = folder / "config.json"
    if not found or not config.is_file():
        return False
    spec = find_spec(OWN)
    assert spec is not None
    assert spec.origin is not None
    own = Path(spec.origin).read_bytes()
    if any(file.read_bytes() != own for file in found):
        return False
    try:
        references = json.loads(config.read_text(encoding="utf-8")).get("auto_map", {})
    except (ValueError, AttributeError):
        return False
    stems = {file.stem for file in found}
    return all(
        isinstance(reference, str)
        and ELSEWHERE not in reference
        and reference.partition(".")[0] in stems
        for reference in references.values()
    )
