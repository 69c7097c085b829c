"""What is measured: a model, how it is deployed, and the load on it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace


class Measure(enum.Enum):
    """What a measurement does with a running server."""

    LOAD = "load"  # as many requests as it answers
    STREAM = "stream"  # the same, besides time to the first chunk
    START = "start"  # launch to first right answer, then memory and idling
    GRPC = "grpc"


# Names a work may give as `task`; `models/tasks.py` implements them for all servers.
TASKS = ("echo", "wait", "cnn", "resnet", "explain", "stream")
STREAM_CHUNKS = 20


@dataclass(frozen=True)
class Deployment:
    """All that decides how a server is started: works that share it are measured on one start.

    archive: path of a model archive, for servers that take archives; "" = the task's own.
    registered_models: how many models the server knows; one of them is asked.
    """

    task: str = "echo"
    batch_size: int = 1
    max_batch_delay_ms: int = 5
    workers: int = 1
    registered_models: int = 1
    archive: str = ""


@dataclass(frozen=True)
class Work:
    """id: unique, begins with the family; payload: see `payloads`.

    x: the figure that grows within a family of growth; None elsewhere.
    """

    id: str
    family: str
    title: str
    deployment: Deployment = Deployment()
    payload: str = "100B"
    connections: int = 1
    idle_connections: int = 0
    measure: Measure = Measure.LOAD
    x: int | None = None


def _echo(family: str, title: str, **fields: object) -> Work:
    return Work(f"{family}-{fields['connections']}", family, title, **fields)  # type: ignore[arg-type]


def _growth(family: str, title: str, x: int, **fields: object) -> Work:
    return Work(f"{family}-{x}", family, title, x=x, **fields)  # type: ignore[arg-type]


_BATCH = Deployment(batch_size=8)
_CNN = Deployment("cnn", batch_size=8)
_STREAM = Deployment("stream")

_STANDARD = [
    *(
        _echo("W1", f"echo of 100 bytes, batch 1, {count} connection(s)", connections=count)
        for count in (1, 16, 64)
    ),
    _echo("W2", "echo of 100 bytes, batch 8, 64 connections", deployment=_BATCH, connections=64),
    _echo("W3", "echo of 1 MiB, batch 1, 4 connections", payload="1MiB", connections=4),
    _echo(
        "W4",
        "small CNN on a 28x28 PNG, batch 8, 32 connections",
        deployment=_CNN,
        payload="digit.png",
        connections=32,
    ),
    _echo(
        "W5",
        "ResNet-18 on a 224x224 JPEG, batch 1, 8 connections",
        deployment=Deployment("resnet"),
        payload="photo.jpg",
        connections=8,
    ),
    *(
        _echo(
            "W6",
            f"stream of {STREAM_CHUNKS} chunks of 30 bytes, {count} connection(s)",
            deployment=_STREAM,
            connections=count,
            measure=Measure.STREAM,
        )
        for count in (1, 8)
    ),
    Work("W7", "W7", "launch to the first right answer; memory and idling", measure=Measure.START),
    _echo(
        "W8",
        "explanation (integrated gradients, 15 steps), 4 connections",
        deployment=Deployment("explain"),
        payload="digit.png",
        connections=4,
    ),
    *(
        _echo(
            "W9",
            f"gRPC echo of 100 bytes, batch 1, {count} caller(s) on one channel",
            connections=count,
            measure=Measure.GRPC,
        )
        for count in (1, 16)
    ),
]

_GROWTH = [
    *(
        _growth(
            "models",
            f"{count} registered model(s), one asked over 16 connections",
            count,
            deployment=Deployment(registered_models=count),
            connections=16,
        )
        for count in (1, 10, 100)
    ),
    *(
        _growth(
            "idle",
            f"{count} idle connection(s) besides 16 busy ones",
            count,
            idle_connections=count,
            connections=16,
        )
        for count in (1, 10, 100, 1000)
    ),
    *(
        _growth(
            "workers",
            f"echo by {count} worker(s), 64 connections",
            count,
            deployment=Deployment(workers=count),
            connections=64,
        )
        for count in (1, 2, 4, 8, 16)
    ),
    *(
        _growth(
            "waiting",
            f"{count} worker(s) whose model waits 10 ms without using a processor, 64 connections",
            count,
            deployment=Deployment("wait", workers=count),
            connections=64,
        )
        for count in (1, 2, 4, 8, 16)
    ),
]

WORKS: dict[str, Work] = {work.id: work for work in (*_STANDARD, *_GROWTH)}
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(work.family for work in WORKS.values()))
GROWTH_FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(work.family for work in _GROWTH))


class UnknownWork(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(
            f'there is no work "{name}"; families: {", ".join(FAMILIES)}; works: {", ".join(WORKS)}'
        )


def select(name: str) -> list[Work]:
    """The works of an id or of a family. Raises UnknownWork."""
    if name in WORKS:
        return [WORKS[name]]
    family = [work for work in WORKS.values() if work.family == name]
    if not family:
        raise UnknownWork(name)
    return family


def grid(work: Work, **choices: Sequence[int]) -> list[Work]:
    """One work per combination of `choices`: batch_size, workers, connections.

    Ids say what distinguishes them: `mine-b8-w2-c100` where all three have several values.
    """
    works = [work]
    for field, letter in (("batch_size", "b"), ("workers", "w"), ("connections", "c")):
        values = choices.get(field) or ()
        works = [
            _with(each, field, value, f"-{letter}{value}" if len(values) > 1 else "")
            for each in works
            for value in values or (None,)
        ]
    return works


def _with(work: Work, field: str, value: int | None, suffix: str) -> Work:
    if value is None:
        return work
    named = replace(work, id=work.id + suffix)
    if field == "connections":
        return replace(named, connections=value)
    return replace(named, deployment=replace(work.deployment, **{field: value}))  # type: ignore[arg-type]


def by_deployment(works: Sequence[Work]) -> list[list[Work]]:
    """`works` in groups that share a start of the server, in order of first appearance.

    Works that measure the start itself stand alone.
    """
    groups: dict[object, list[Work]] = {}
    for work in works:
        # The floor's gRPC is another program than its HTTP.
        key = (work.deployment, work.measure is Measure.GRPC)
        groups.setdefault(work.id if work.measure is Measure.START else key, []).append(work)
    return list(groups.values())
