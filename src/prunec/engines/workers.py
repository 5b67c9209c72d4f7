"""Workers that do the independent pieces of a job beside one another.

A job is data: it is sent to every worker once, opened there, and then given one piece after the
other. What a piece gives does not depend on where it is done, or on how often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError

__all__ = ["ENGINE", "Job", "Pool", "Workers", "check_engine", "engine_problems", "workers"]

ENGINE = "ray"
"""The engine that there is; `ray=ADDRESS` names a cluster."""


class Job(Protocol):
    """Can be pickled. What opens it gives what does a piece."""

    def open(self) -> Callable[[Any], Any]: ...


class Pool(Protocol):
    """Workers that have opened a job."""

    def __call__(
        self, pieces: Sequence[Any], done: Callable[[Any], None] = lambda result: None
    ) -> list[Any]:
        """What the pieces give, in their order; `done` is told of each as it comes, in any."""


class Workers(Protocol):
    """`count` of them."""

    @property
    def count(self) -> int: ...

    def pool(self, job: Job) -> Pool:
        """Send a job to all of them."""


@contextmanager
def workers(engine: str, count: int | None) -> Iterator[Workers | None]:
    """The workers of an engine (see `engine_problems`), or None for none.

    Raises P994 where Ray is not installed and P885 when its cluster cannot be reached.
    """
    if not engine:
        yield None
        return
    from prunec.engines.ray_workers import ray_workers

    _, _, address = engine.partition("=")
    with ray_workers(address or None, count) as found:
        yield found


def engine_problems(engine: str, count: int | None) -> Iterator[Diagnostic]:
    """Mistakes in `--engine` (empty for none) and `--workers`."""
    name, equals, address = engine.partition("=")
    if engine and (name != ENGINE or (equals and not address)):
        yield Diagnostic(
            "P810",
            f"--engine does not know {engine!r}",
            "--engine",
            help="ray, or ray=HOST:PORT for a cluster; leave it out for this process alone",
        )
    if count is not None and not engine:
        fact = "there are no workers without an engine"
        yield Diagnostic("P815", fact, "--workers", help="add --engine ray")
    if count is not None and count < 1:
        fact = f"--workers must be at least 1, not {count}"
        yield Diagnostic("P811", fact, "--workers", help="leave it out for one a core")


def check_engine(engine: str, count: int | None) -> None:
    """Raise the mistakes (exit 2), if there are any."""
    problems = list(engine_problems(engine, count))
    if problems:
        raise PrunecError(problems, Exit.USAGE)
