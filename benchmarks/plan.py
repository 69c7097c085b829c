"""What a run will do: read from a YAML file and the command line, checked before anything starts.

Every PlanError names the place in the file, for instance `full.yaml: works[2].workers`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import payloads
from benchmarks.machine import NoiseLimits
from benchmarks.servers import KINDS
from benchmarks.servers.base import ServerOptions
from benchmarks.works import TASKS, Deployment, Measure, UnknownWork, Work, grid, select

CONFIGS = Path(__file__).parent / "configs"

# Columns that need more than the name of a kind.
PRESETS: dict[str, ServerOptions] = {
    # Settings that were found to make TorchServe faster: no access log, few log lines and metrics.
    "torchserve-tuned": ServerOptions(
        "torchserve-tuned",
        "torchserve",
        settings={
            "async_logging": "true",
            "disable_system_metrics": "true",
            "enable_metrics_api": "false",
            "job_queue_size": "1000",
            "log_config": str(CONFIGS / "torchserve-quiet-log.xml"),
            "metrics_config": str(CONFIGS / "torchserve-few-metrics.yaml"),
        },
    ),
}

_PLAN_KEYS = (
    *("servers", "environments", "works", "rounds", "extra_rounds", "seconds"),
    *("warmup_seconds", "settle_seconds", "fresh", "noise"),
)
_WORK_KEYS = (
    *("id", "title", "task", "archive", "input", "batch_size", "max_batch_delay_ms"),
    *("workers", "connections", "idle_connections", "registered_models", "measure"),
)


class PlanError(Exception):
    pass


@dataclass(frozen=True)
class Plan:
    """servers: columns; ratios are those of the first one to each of the others.

    extra_rounds: added to a work while a server has fewer than `rounds` quiet measurements of it.
    settle_s:     between a start and the measuring of memory and idling.
    is_fresh:     a server is started anew for every measurement and runs alone on the machine;
                  else all servers of a work run at the same time, those not asked being idle.
    """

    servers: tuple[ServerOptions, ...]
    works: tuple[Work, ...]
    rounds: int = 5
    extra_rounds: int = 2
    seconds: float = 8.0
    warmup_s: float = 3.0
    settle_s: float = 5.0
    is_fresh: bool = False
    noise: NoiseLimits = field(default_factory=NoiseLimits)


def read_plan(path: Path) -> Plan:
    """Raises PlanError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: not YAML: {error}") from error
    return to_plan(content, path.name, path.parent)


def to_plan(content: object, name: str = "plan", folder: Path = Path()) -> Plan:
    """content: what the YAML file holds. name: of the file, for messages. folder: its paths are
    relative to it. Raises PlanError.
    """
    top = _Section(content, name, folder)
    top.only(*_PLAN_KEYS)
    environments = top.section("environments")
    plan = Plan(
        servers=tuple(_servers(top, environments)),
        works=tuple(work for each in top.items("works") for work in _works(each)),
        rounds=top.integer("rounds", 5, low=1),
        extra_rounds=top.integer("extra_rounds", 2, low=0),
        seconds=top.number("seconds", 8.0, low=0.1),
        warmup_s=top.number("warmup_seconds", 3.0, low=0),
        settle_s=top.number("settle_seconds", 5.0, low=0),
        is_fresh=top.boolean("fresh", False),
        noise=_noise(top.section("noise")),
    )
    check(plan, name)
    return plan


def check(plan: Plan, name: str = "plan") -> None:
    """What no single value can show. Raises PlanError."""
    if not plan.servers:
        raise PlanError(f"{name}: servers: name at least one of {', '.join(known_servers())}")
    if not plan.works:
        raise PlanError(f"{name}: works: name at least one, for instance W1")
    for what, names in (
        ("servers", [server.name for server in plan.servers]),
        ("works", [work.id for work in plan.works]),
    ):
        twice = {each for each in names if names.count(each) > 1}
        if twice:
            raise PlanError(f"{name}: {what}: {', '.join(sorted(twice))} is there twice")


def known_servers() -> list[str]:
    return [*KINDS, *PRESETS]


def server_named(name: str, python: str = "") -> ServerOptions:
    """A kind, a preset, or `KIND@LABEL`: one more column of that kind. Raises PlanError."""
    kind = name.partition("@")[0]
    options = PRESETS.get(name)
    if options is None and kind in KINDS:
        options = ServerOptions(name, kind)
    if options is None:
        raise PlanError(f'there is no server "{name}"{_guess(name, known_servers())}')
    return replace(options, python=python) if python else options


def choose_servers(plan: Plan, names: Sequence[str], environments: Mapping[str, str]) -> Plan:
    """The plan with these columns (none: its own) and interpreters. Raises PlanError.

    environments: name of a server or of a kind -> path of a Python.
    """
    own = {server.name: server for server in plan.servers}
    wanted = [own.get(name) or server_named(name) for name in names] or list(plan.servers)
    known = {name for server in wanted for name in (server.name, server.kind)}
    for name in environments:
        if name not in known and name not in known_servers():
            raise PlanError(f'--env: there is no server "{name}"{_guess(name, known)}')
    servers = [
        replace(server, python=environments.get(server.name) or _of_kind(server, environments))
        for server in wanted
    ]
    return replace(plan, servers=tuple(servers))


def _of_kind(server: ServerOptions, environments: Mapping[str, str]) -> str:
    return environments.get(server.kind, "") or server.python


def choose_works(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan with only these works: families or ids, its own or built in. Raises PlanError."""
    chosen: list[Work] = []
    for name in names:
        own = [work for work in plan.works if name in (work.id, work.family)]
        try:
            chosen += own or select(name)
        except UnknownWork as error:
            raise PlanError(f"--works: {error}") from error
    return replace(plan, works=tuple(dict.fromkeys(chosen)))


def _servers(top: _Section, environments: _Section) -> Iterable[ServerOptions]:
    pythons = {name: environments.path(name) for name in environments.names()}
    for name in pythons:
        if name not in known_servers() and not any(
            isinstance(each.content, dict) and each.content.get("name") == name
            for each in top.items("servers")
        ):
            environments.fail(f'there is no server "{name}"{_guess(name, known_servers())}')
    for each in top.items("servers"):
        if isinstance(each.content, str):
            try:
                options = server_named(each.content)
            except PlanError as error:
                each.fail(str(error))
        else:
            each.only("name", "kind", "python", "settings")
            kind = each.text("kind", one_of=KINDS)
            settings = each.section("settings")
            options = ServerOptions(
                each.text("name", kind),
                kind,
                each.path("python") if each.has("python") else "",
                {key: settings.scalar(key) for key in settings.names()},
            )
        python = options.python or pythons.get(options.name) or pythons.get(options.kind, "")
        yield replace(options, python=python)


def _works(item: _Section) -> list[Work]:
    if isinstance(item.content, str):
        try:
            return select(item.content)
        except UnknownWork as error:
            item.fail(str(error))
    item.only(*_WORK_KEYS)
    if item.has("archive") == item.has("task"):
        item.fail("give either archive (the path of a .mar file) or task")
    name = item.text("id")
    payload = item.text("input", "100B")
    if payload not in payloads.BUILT_IN:
        payload = item.path("input", must_exist=True)
    work = Work(
        name,
        name,
        item.text("title", name),
        Deployment(
            task=item.text("task", "echo", one_of=TASKS),
            archive=item.path("archive", must_exist=True) if item.has("archive") else "",
            max_batch_delay_ms=item.integer("max_batch_delay_ms", 5, low=0),
            registered_models=item.integer("registered_models", 1, low=1),
        ),
        payload,
        idle_connections=item.integer("idle_connections", 0, low=0),
        measure=Measure(
            item.text("measure", "load", one_of=[measure.value for measure in Measure])
        ),
    )
    return grid(
        work,
        batch_size=item.integers("batch_size", 1),
        workers=item.integers("workers", 1),
        connections=item.integers("connections", 1),
    )


def _noise(section: _Section) -> NoiseLimits:
    section.only(*NoiseLimits._fields)
    standard = NoiseLimits()
    return NoiseLimits(
        section.number("foreign", standard.foreign, low=0),
        section.number("stolen", standard.stolen, low=0),
        section.number("slowdown", standard.slowdown, low=1),
    )


def _guess(name: str, known: Iterable[str]) -> str:
    choices = list(known)
    near = difflib.get_close_matches(name, choices, 1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(choices)}"


class _Section:
    """A part of the file that knows where it stands."""

    def __init__(self, content: object, where: str, folder: Path) -> None:
        self.content = content
        self.where = where
        self._folder = folder

    def fail(self, problem: str) -> NoReturn:
        raise PlanError(f"{self.where}: {problem}")

    def _fail_at(self, key: str, problem: str) -> NoReturn:
        raise PlanError(f"{self._place(key)}: {problem}")

    def _map(self) -> dict[str, Any]:
        if not isinstance(self.content, dict):
            self.fail(f"expected keys and values, found {self.content!r}")
        return self.content

    def only(self, *keys: str) -> None:
        """Refuse other keys than these."""
        for key in self._map():
            if key not in keys:
                self.fail(f'there is no key "{key}"{_guess(str(key), keys)}')

    def has(self, key: str) -> bool:
        return key in self._map()

    def names(self) -> list[str]:
        return [str(key) for key in self._map()]

    def section(self, key: str) -> _Section:
        """Empty if absent."""
        return _Section(self._map().get(key) or {}, self._place(key), self._folder)

    def items(self, key: str) -> list[_Section]:
        values = self._map().get(key, [])
        if not isinstance(values, list):
            self._fail_at(key, f"expected a list, found {values!r}")
        return [
            _Section(value, f"{self._place(key)}[{number}]", self._folder)
            for number, value in enumerate(values)
        ]

    def _place(self, key: str) -> str:
        return f"{self.where}{': ' if ':' not in self.where else '.'}{key}"

    def text(self, key: str, default: str | None = None, one_of: Iterable[str] = ()) -> str:
        value = self._map().get(key, default)
        choices = list(one_of)
        if value is None:
            self.fail(f"{key} is missing")
        if not isinstance(value, str) or not value:
            self._fail_at(key, f"expected text, found {value!r}")
        if choices and value not in choices:
            self._fail_at(key, f'there is no "{value}"{_guess(value, choices)}')
        return value

    def scalar(self, key: str) -> str:
        """As a properties file would have it."""
        value = self._map()[key]
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, str | int | float):
            self._fail_at(key, f"expected one value, found {value!r}")
        return str(value)

    def path(self, key: str, *, must_exist: bool = False) -> str:
        path = self._folder / Path(self.text(key)).expanduser()
        if must_exist and not path.is_file():
            self._fail_at(key, f"there is no file {path}")
        return str(path)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._map().get(key, default)
        if not isinstance(value, bool):
            self._fail_at(key, f"expected true or false, found {value!r}")
        return value

    def number(self, key: str, default: float, *, low: float) -> float:
        value = self._map().get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
            self._fail_at(key, f"expected a number from {low:g} up, found {value!r}")
        return float(value)

    def integer(self, key: str, default: int, *, low: int) -> int:
        value = self._map().get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            self._fail_at(key, f"expected a whole number from {low} up, found {value!r}")
        return value

    def integers(self, key: str, default: int) -> list[int]:
        """One whole number from 1 up, or a list of them."""
        value = self._map().get(key, default)
        values = value if isinstance(value, list) else [value]
        for each in values:
            if isinstance(each, bool) or not isinstance(each, int) or each < 1:
                self._fail_at(key, f"expected whole numbers from 1 up, found {each!r}")
        if not values:
            self._fail_at(key, "expected at least one number")
        return values
