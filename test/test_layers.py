"""The layering as a fact: who may import whom, read from the source of every module.

`ROOMS` and `TS_LAYERS` are the picture; `find_violations` compares the sources with it. Imports
inside functions and under TYPE_CHECKING count like any other.
"""

import ast
import graphlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = {
    "ts_frontend": ROOT / "frontend",
    "ts": ROOT,
    "model_archiver": ROOT / "model-archiver",
    "workflow_archiver": ROOT / "model-archiver",
}

CAPABILITIES = frozenset({"core", "archive", "workers", "metrics", "settings", "snapshot"})
PLANES = frozenset({"data_plane", "control_plane", "health", "residency", "rollout"})
ANY_ROOM = frozenset({"*"})

# Room of ts_frontend -> what of ts_frontend it may import besides itself. Longer names
# ("core.errors") open only that module. A new room or top-level module gets its line here.
ROOMS: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "archive": frozenset({"core"}),
    "workers": frozenset({"core"}),
    "metrics": frozenset({"core"}),
    "settings": frozenset({"core"}),
    "snapshot": frozenset({"core"}),
    "logs": frozenset({"core"}),
    "tokens": frozenset({"core"}),
    "start_report": frozenset(),
    "private_folder": frozenset(),
    "archive_report": frozenset({"core", "archive"}),
    "model_check": frozenset({"core", "archive", "archive_report"}),
    "data_plane": CAPABILITIES,
    "residency": CAPABILITIES,
    "control_plane": CAPABILITIES | {"residency"},
    "health": CAPABILITIES,
    "rollout": CAPABILITIES | {"control_plane"},
    "http": frozenset({"core.errors", "settings"}),
    "grpc": frozenset({"core.errors", "settings"}),
    "dialects": frozenset({"core", "http", "grpc", "settings", "tokens"}) | PLANES,
    "security": ANY_ROOM,
    "config_check": ANY_ROOM,
    "server": ANY_ROOM,
    "try_model": ANY_ROOM,
    "cli": ANY_ROOM,
    "__main__": ANY_ROOM,
    "__init__": frozenset(),
}

# Dialects stand side by side, each in a folder; what they share lies beside the folders and knows
# none of them. The one pair that shares a schema is declared.
SHARED_BY_DIALECTS = frozenset(
    {"__init__", "base", "errors", "inference_grpc", "inference_http", "json_body"}
)
DIALECT_EXCEPTIONS = {("lmdeploy", "openai")}

# Modules the frontend must never load: it holds no tensors and unpickles nothing.
BANNED_IN_FRONTEND = frozenset(
    {"torch", "numpy", "torchvision", "pickle", "_pickle", "marshal", "shelve"}
    | {"cloudpickle", "dill", "joblib", "model_archiver", "workflow_archiver"}
)
# Bytes, sockets and text formats are for the rooms above.
BANNED_IN_CORE = frozenset({"json", "http", "socket", "ssl", "selectors", "subprocess", "urllib"})

# Module or package of ts -> its layer; imports go to the same layer or a lower one.
TS_LAYERS: dict[str, int] = {
    "__init__": 0,
    "version": 0,
    "protocol": 0,
    "utils": 0,
    "command_source": 2,
    "context": 1,
    "metrics": 1,
    "transports": 1,
    "generators": 2,
    "service": 2,
    "async_service": 2,
    "model_loader": 2,
    "handler_utils": 3,
    "torch_handler": 3,
    "engines": 3,
    "serve": 3,
    "model_service": 3,
    "arg_parser": 4,
    "handler_check": 4,
    "containment": 2,
    "model_service_worker": 4,
    "worker_zygote": 4,
    "model_server": 5,
    "launcher": 6,
    "llm_launcher": 7,
}


class Import(NamedTuple):
    """One imported name: `from a.b import c` counts as "a.b.c", whether c is a module or not."""

    name: str
    line: int
    is_at_load: bool  # runs when the module is imported: not in a function, not for types only


def read_sources() -> dict[str, str]:
    """Module name -> source; a package goes by "<name>.__init__"."""
    sources = {}
    for package, root in SOURCE_ROOTS.items():
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            sources[name] = path.read_text(encoding="utf-8")
    return sources


def imports_of(module: str, source: str) -> list[Import]:
    return list(_walk(ast.parse(source), module, is_at_load=True))


def _walk(node: ast.AST, module: str, is_at_load: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, is_at_load)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(module, child)
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, is_at_load)
        elif isinstance(child, ast.Call) and (name := _imported_by_call(child)):
            yield Import(name, child.lineno, is_at_load=False)
        is_deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _walk(child, module, is_at_load and not is_deferred and not is_for_types)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".")[: -node.level]
    return ".".join(package + ([node.module] if node.module else []))


def _imported_by_call(call: ast.Call) -> str | None:
    """The name in `importlib.import_module("name")` or `__import__("name")`, if written out."""
    function = ast.unparse(call.func)
    first = call.args[0] if call.args else None
    if function.endswith(("import_module", "__import__")) and isinstance(first, ast.Constant):
        return first.value if isinstance(first.value, str) else None
    return None


def find_violations(sources: Mapping[str, str]) -> list[str]:
    found = []
    for module, source in sources.items():
        for imported in imports_of(module, source):
            complaint = complaint_about(module, imported.name)
            if complaint:
                found.append(f"{module}:{imported.line} imports {imported.name}: {complaint}")
    return found


def complaint_about(module: str, imported: str) -> str | None:
    top = module.partition(".")[0]
    target = imported.partition(".")[0]
    if top == "ts_frontend":
        return _frontend_complaint(module, imported, target)
    if top == "ts":
        return _ts_complaint(module, imported, target)
    if target in ("ts_frontend", "torch"):
        return "the archivers work without the server and without torch"
    return None


def _frontend_complaint(module: str, imported: str, target: str) -> str | None:
    room = module.split(".")[1]
    if target in BANNED_IN_FRONTEND:
        return f"the frontend never loads {target}; that belongs into the worker"
    if target == "ts" and not is_within(imported, "ts.protocol"):
        return "of ts the frontend may import ts.protocol only"
    if target == "ts_frontend":
        return _room_complaint(module, room, imported)
    if room == "core":
        if target in BANNED_IN_CORE:
            return f"core knows rules and no wires; {target} belongs into a room above"
        if target != "ts" and target not in sys.stdlib_module_names:
            return "core imports the standard library and ts.protocol only"
    return None


def _room_complaint(module: str, room: str, imported: str) -> str | None:
    other = second_part(imported)
    for name in (room, other):
        if name not in ROOMS:
            return f"{name} is a new room; give it a line in ROOMS of test_layers.py"
    if room == other == "dialects":
        return _dialect_complaint(module, imported)
    allowed = ROOMS[room]
    if other == room or allowed == ANY_ROOM:
        return None
    if any(is_within(imported, f"ts_frontend.{name}") for name in allowed):
        return None
    return f"{room} may import only {', '.join(sorted(allowed)) or 'itself'} of ts_frontend"


def _dialect_complaint(module: str, imported: str) -> str | None:
    own, other = dialect_of(module), dialect_of(imported)
    if other is None or own == other or (own, other) in DIALECT_EXCEPTIONS:
        return None
    if own is None:
        return f"what the dialects share may not know dialect {other}"
    return f"dialect {own} may not lean on dialect {other}"


def dialect_of(name: str) -> str | None:
    """The dialect's folder, or None for what all dialects share."""
    parts = name.split(".")
    is_shared = len(parts) < 3 or parts[2] in SHARED_BY_DIALECTS or parts[2].isupper()
    return None if is_shared else parts[2]


def _ts_complaint(module: str, imported: str, target: str) -> str | None:
    own = module.split(".")[1]
    if target == "ts_frontend":
        return "ts never imports the frontend; the torchserve command starts it as a process"
    if own == "protocol" and target != "ts" and target not in sys.stdlib_module_names:
        return "ts.protocol is standard library only: frontend, worker and tests share it"
    if target != "ts":
        return None
    other = second_part(imported)
    if own not in TS_LAYERS:
        return f"{own} is new in ts; give it a line in TS_LAYERS of test_layers.py"
    if own == "protocol" and other != "protocol":
        return "ts.protocol stands on nothing else of ts"
    above = TS_LAYERS.get(other, 0)  # a name of the package itself, such as __version__, is 0
    return f"{other} (layer {above}) is above {own}" if above > TS_LAYERS[own] else None


def second_part(name: str) -> str:
    """The room or module right below the package; the package itself counts as "__init__"."""
    return name.split(".")[1] if "." in name else "__init__"


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def find_cycle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a ring while they load; empty if there is none."""
    graph = {module: load_targets(module, source, sources) for module, source in sources.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def load_targets(module: str, source: str, sources: Mapping[str, str]) -> set[str]:
    targets = set()
    for imported in imports_of(module, source):
        name = imported.name
        # The longest prefix that is a module: the last part may be a class or function of it.
        while imported.is_at_load and name:
            found = name if name in sources else f"{name}.__init__"
            if found in sources:
                targets.add(found)
                break
            name = name.rpartition(".")[0]
    return targets - {module}


SOURCES = read_sources()


def test_imports_point_down() -> None:
    found = find_violations(SOURCES)
    assert not found, "imports against the layering:\n  " + "\n  ".join(found)


def test_no_module_imports_itself_in_a_ring() -> None:
    cycle = find_cycle(SOURCES)
    assert not cycle, "import ring: " + " -> ".join(cycle)


PLANTED = [
    ("ts_frontend.core.job", "from ts_frontend.http.request import HttpRequest", "core may import"),
    ("ts_frontend.core.job", "import json", "no wires"),
    ("ts_frontend.core.job", "import msgspec", "standard library"),
    (
        "ts_frontend.archive.fetch",
        "from ts_frontend.workers.pool import Pool",
        "archive may import",
    ),
    ("ts_frontend.workers.pool", "from ts_frontend.settings import Settings", "workers may import"),
    ("ts_frontend.data_plane", "import ts_frontend.dialects.base", "data_plane may import"),
    ("ts_frontend.data_plane", "import ts_frontend.control_plane", "data_plane may import"),
    ("ts_frontend.http.router", "from ts_frontend.core.job import Job", "http may import only"),
    ("ts_frontend.http.router", "from ..core import job", "http may import only"),
    (
        "ts_frontend.dialects.kserve_v1.routes",
        "from ..torchserve import convert",
        "may not lean on",
    ),
    ("ts_frontend.dialects.errors", "import ts_frontend.dialects.torchserve", "may not know"),
    ("ts_frontend.dialects.torchserve.routes", "import ts_frontend.workers.pool", "dialects may"),
    ("ts_frontend.newroom.thing", "import ts_frontend.core.job", "ROOMS"),
    ("ts_frontend.core.job", "import ts_frontend.newroom", "ROOMS"),
    ("ts_frontend.metrics.system", "def read():\n    import torch", "never loads torch"),
    ("ts_frontend.workers.worker", "import importlib\nimportlib.import_module('numpy')", "numpy"),
    ("ts_frontend.server", "from pickle import loads", "never loads pickle"),
    ("ts_frontend.server", "from ts.context import Context", "ts.protocol only"),
    ("ts.model_server", "import ts_frontend.server", "ts never imports the frontend"),
    ("ts.protocol.frames", "import torch", "standard library only"),
    ("ts.protocol.frames", "from ts.context import Context", "stands on nothing else"),
    ("ts.context", "from ts.service import Service", "is above context"),
    ("ts.model_loader", "from ts.torch_handler.base_handler import BaseHandler", "is above"),
    ("ts.newthing", "import ts.context", "TS_LAYERS"),
    ("model_archiver.model_packaging", "import torch", "without torch"),
]


@pytest.mark.parametrize(("module", "source", "complaint"), PLANTED)
def test_a_planted_violation_is_found(module: str, source: str, complaint: str) -> None:
    (found,) = find_violations({module: source})
    assert complaint in found


ALLOWED = [
    ("ts_frontend.core.inference", "from ts.protocol.messages import Part"),
    ("ts_frontend.http.router", "from ts_frontend.core.errors import RouteNotFound"),
    ("ts_frontend.control_plane", "from ts_frontend.workers.pool import WorkerPool"),
    ("ts_frontend.dialects.lmdeploy.schema", "from ts_frontend.dialects.openai import schema"),
    ("ts_frontend.dialects.torchserve.routes", "from ts_frontend.dialects.base import Dialect"),
    ("ts_frontend.dialects.torchserve.routes", "from ts_frontend.dialects.errors import translate"),
    ("ts_frontend.server", "from ts_frontend.dialects import DIALECTS"),
    ("ts.torch_handler.base_handler", "from ts.handler_utils.timer import timed"),
    ("ts.model_service_worker", "from ts.model_loader import ModelLoaderFactory"),
]


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_a_rightful_import_passes(module: str, source: str) -> None:
    assert find_violations({module: source}) == []


def test_a_planted_ring_is_found() -> None:
    ring = {"ts.a": "from ts.b import x", "ts.b": "import ts.c", "ts.c": "from ts.a import y"}
    assert set(find_cycle(ring)) == {"ts.a", "ts.b", "ts.c"}
    broken = ring | {"ts.c": "def later():\n    from ts.a import y"}
    assert find_cycle(broken) == []


LOADED = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
found = [name for name in sys.argv[1].split(",") if name in sys.modules]
sys.exit(f"loaded: {found}" if found else 0)
"""


def load_in_fresh_process(modules: list[str], banned: str) -> None:
    paths = [str(path) for path in dict.fromkeys(SOURCE_ROOTS.values())]
    result = subprocess.run(
        [sys.executable, "-c", LOADED, banned, *modules],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_running_frontend_loads_no_torch() -> None:
    """What the sources cannot show: a library of ours that loads one of them by itself."""
    modules = [
        name.removesuffix(".__init__")
        for name in SOURCES
        if name.startswith("ts_frontend.") and not name.endswith("__main__")
    ]
    has_grpc = importlib.util.find_spec("grpc") is not None
    wanted = [name for name in modules if has_grpc or ".grpc" not in name]
    load_in_fresh_process(wanted, "torch,numpy,cloudpickle,ts.context,ts.torch_handler")


def test_importing_ts_loads_no_torch() -> None:
    load_in_fresh_process(["ts", "ts.version", "ts.protocol"], "torch,numpy,ts_frontend")
