"""How commands look: options under headings, examples below, and options that several share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "ENGINE",
    "FILE",
    "JSON",
    "MODEL",
    "TRUST",
    "WORKERS",
    "Decorator",
    "Function",
    "Grouped",
    "listed",
    "option",
]

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]


class Grouped(click.Command):
    """A command whose options are listed under headings; the epilog keeps its line breaks."""

    headings: dict[str, str]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is None:
                continue
            heading = getattr(param, "heading", None) or "General"
            sections.setdefault(heading, []).append(record)
        general = sections.pop("General", [])
        for heading, records in [*sections.items(), ("General", general)]:
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.epilog:
            return
        with formatter.section("Examples"):
            for line in self.epilog.strip().splitlines():
                formatter.write(f"  {line.strip()}\n" if line.strip() else "\n")


class Headed(click.Option):
    """An option that knows the heading it is listed under."""

    def __init__(self, *args: Any, heading: str = "General", **kwargs: Any) -> None:
        self.heading = heading
        super().__init__(*args, **kwargs)


def option(*names: str, heading: str = "General", **kwargs: Any) -> Decorator[Any]:
    return click.option(*names, cls=Headed, heading=heading, **kwargs)


def listed(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Split `hf,onnx` into its parts."""
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


MODEL = click.argument("model")
JSON = option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
TRUST = option(
    "--trust-remote-code", is_flag=True, help="Run the Python code that the model brings."
)
FILE = click.Path(path_type=Path)
ENGINE = option(
    "--engine",
    default="",
    metavar="ray[=ADDRESS]",
    help="Share the work out over Ray: the cluster at ADDRESS, or in RAY_ADDRESS, or else the "
    "cores of this machine. [this process]",
)
WORKERS = option("--workers", type=int, metavar="N", help="Of the engine. [one a core]")
