"""Workers of a Ray cluster: one that is running, or one of this machine's own cores.

A worker is an actor, so that it opens a job once. Ray starts a new one where one has died and gives
it the same piece again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import ActorPool

from prunec.engines.workers import Job, Pool
from prunec.ir.diagnostics import PrunecError, fail

__all__ = ["ray_workers"]

ADDRESS = "RAY_ADDRESS"
"""Where Ray's own tools look for a cluster."""
LOCAL, ANY = "local", "auto"

PATIENCE = 10.0
"""Seconds to wait for the head of a cluster to answer."""

RETRIES = 5
"""How often a worker is started again, and a piece given again."""


@contextmanager
def ray_workers(address: str | None, count: int | None) -> Iterator[RayWorkers]:
    """Workers of the cluster at `address`, else of that in RAY_ADDRESS, else of a local one which
    ends with the block; one for each of its cores, or `count`."""
    if ray.is_initialized():
        yield RayWorkers(count or _cores())
        return
    place = address or os.environ.get(ADDRESS) or LOCAL
    where = ADDRESS if not address and place != LOCAL else "--engine"
    _check_reachable(place, where)
    try:
        with _own_handler():
            ray.init(
                address=place, include_dashboard=False if place == LOCAL else None,
                num_cpus=count if place == LOCAL else None, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise _unreachable(place, where, error) from error
    try:
        yield RayWorkers(count or _cores())
    finally:
        ray.shutdown()


@contextmanager
def _own_handler() -> Iterator[None]:
    """Ray ends the process on SIGTERM in a way of its own; here that is an exception."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


class RayWorkers:
    """Implements `prunec.engines.workers.Workers`. One job at a time has all of them:
    whichever is given pieces takes them from the other."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.actors: list[Any] = []
        self.job: Any = None

    def pool(self, job: Job) -> Pool:
        return _Pool(self, ray.put(job))

    def opened(self, job: Any) -> list[Any]:
        """The workers, with the job of this reference."""
        if self.job is not job:
            for actor in self.actors:
                ray.kill(actor)
            made = ray.remote(_Worker).options(
                num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES
            )
            self.job, self.actors = job, [made.remote(job) for _ in range(self.count)]
        return self.actors


class _Worker:
    """Runs in a process of its own."""

    def __init__(self, job: Job) -> None:
        self.work: Callable[[Any], Any] = job.open()

    def do(self, place: int, piece: Any) -> tuple[int, Any]:
        return place, self.work(piece)


class _Pool:
    def __init__(self, workers: RayWorkers, job: Any) -> None:
        self.workers, self.job = workers, job

    def __call__(
        self, pieces: Sequence[Any], done: Callable[[Any], None] = lambda result: None
    ) -> list[Any]:
        pool = ActorPool(self.workers.opened(self.job))
        found: list[Any] = [None] * len(pieces)
        try:
            numbered = list(enumerate(pieces))
            for place, result in pool.map_unordered(lambda a, p: a.do.remote(*p), numbered):
                found[place] = result
                done(result)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise _died(error) from error
        return found


def _cores() -> int:
    resources: Any = ray.cluster_resources
    return max(1, int(resources().get("CPU", 1)))


def _check_reachable(place: str, where: str) -> None:
    """Ray itself waits for minutes for a cluster that is not there."""
    if place in (LOCAL, ANY):
        return
    host, _, port = place.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, ValueError) as error:
        raise _unreachable(place, where, error) from error


def _unreachable(place: str, where: str, error: Exception) -> PrunecError:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if place == LOCAL:
        return fail(
            "P885",
            f"no local Ray cluster could be started: {said}",
            where=where,
            help="leave out --engine, or name a cluster: --engine ray=HOST:PORT",
        )
    return fail(
        "P885",
        f"the Ray cluster at {place} cannot be reached: {said}",
        where=where,
        help="see `ray status` on its head, whose port is 6379 by default (10001 after ray://);"
        " with --engine ray and no RAY_ADDRESS a local one is started",
    )


def _died(error: RayActorError) -> PrunecError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return fail(
        "P886",
        f"a worker of the Ray cluster died, and so did those that took its place: {lines[-1]}",
        where="--engine",
        help="use fewer --workers where memory is short; all nodes need prunec and its packages"
        " in the versions of this one",
    )
