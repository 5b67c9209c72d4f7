"""Read YAML with the numbers of version 1.2: `2:4` is a text and `1e-4` a number.

In version 1.1, which PyYAML follows, `2:4` is 124 (minutes and seconds) and `1e-4` a text.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["load_yaml"]

NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*)",
    "tag:yaml.org,2002:float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


def load_yaml(path: Path) -> Any:
    """The content of a file; raises OSError, and ValueError or RecursionError for what is not
    YAML or would build anything but plain data."""
    import yaml

    try:
        return yaml.load(path.read_bytes(), Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


@cache
def _loader() -> Any:
    import yaml

    # the parser in C, where there is one: the other takes minutes for a file of brackets
    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = type("Plain", (base,), {})
    loader.yaml_implicit_resolvers = {  # type: ignore[attr-defined]
        first: [(tag, form) for tag, form in found if tag not in NUMBERS]
        for first, found in base.yaml_implicit_resolvers.items()
    }
    for tag, form in NUMBERS.items():
        loader.add_implicit_resolver(tag, re.compile(f"^(?:{form})$"), list("-+0123456789."))  # type: ignore[attr-defined]
    return loader
