"""What attackers of model servers have found, as rules over the source.

The other findings have tests where they belong, named by their CVE.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What reads bytes of others: the frontend, and the worker as far as it speaks to it.
READERS = [
    *(ROOT / "frontend" / "ts_frontend").rglob("*.py"),
    *(ROOT / "ts" / "protocol").rglob("*.py"),
    *(ROOT / "ts" / "transports").rglob("*.py"),
    *(ROOT / "ts" / f"{name}.py" for name in ("model_service_worker", "command_source", "service")),
]
OURS = [*READERS, *(ROOT / "ts").rglob("*.py"), *(ROOT / "model-archiver").rglob("*.py")]

UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"}
LOADERS = {"load", "load_all", "unsafe_load", "full_load", "UnsafeLoader", "FullLoader", "Loader"}


def unpicklers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            if isinstance(node, ast.Attribute) and node.attr in ("recv_pyobj", "send_pyobj"):
                yield node.attr
            continue
        yield from (name for name in names if name.split(".")[0] in UNPICKLERS)


def shells(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in SHELLS:
            yield node.func.attr
        for keyword in node.keywords:
            is_off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
            if keyword.arg == "shell" and not is_off:
                yield "shell="


def yaml_loaders(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if node.value.id == "yaml" and node.attr in LOADERS:
            yield f"yaml.{node.attr}"


RULES = {
    # ShadowMQ: pickles from a socket, copied from server to server.
    "cve_2024_50050_nothing_is_unpickled": (READERS, unpicklers),
    # The names of an archive's files went through a shell to pip.
    "serve_2680_no_shell": (OURS, shells),
    "cve_2022_1471_yaml_makes_no_objects": (OURS, yaml_loaders),
}
PLANTED = {
    "cve_2024_50050_nothing_is_unpickled": [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "socket.recv_pyobj()",
    ],
    "serve_2680_no_shell": ["os.system(x)", "subprocess.run(x, shell=True)", "run(x, shell=y)"],
    "cve_2022_1471_yaml_makes_no_objects": ["yaml.load(x)", "yaml.load(x, Loader=yaml.Loader)"],
}


@pytest.mark.parametrize("rule", RULES)
def test_finding(rule: str) -> None:
    files, find = RULES[rule]
    assert len(files) > 30
    found = {
        str(path.relative_to(ROOT)): what
        for path in files
        if (what := list(find(ast.parse(path.read_text()))))
    }
    assert not found


@pytest.mark.parametrize("rule", RULES)
def test_a_planted_violation_is_found(rule: str) -> None:
    for source in PLANTED[rule]:
        assert list(RULES[rule][1](ast.parse(source))), source
    assert list(RULES[rule][1](ast.parse("run(x, shell=False); yaml.safe_load(y)"))) == []
