"""What a process takes from itself, each in a process of its own: it cannot be given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ts.containment import CPU_GRACE_S, NotContainedError, contain
from ts.protocol.restrictions import RESTRICTIONS_VARIABLE, Restrictions

ROOT = Path(__file__).resolve().parents[2]


def contained(restrictions: str, then: str) -> str:
    code = (
        "import resource, sys\n"
        "from ts.containment import contain\n"
        "from ts.protocol.restrictions import Restrictions\n"
        f"contain(Restrictions({restrictions}))\n{then}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LIMITS = [
    ("open_files=50", "RLIMIT_NOFILE", (50, 50)),
    ("file_bytes=1 << 20", "RLIMIT_FSIZE", (1 << 20, 1 << 20)),
    ("address_space_bytes=1 << 32", "RLIMIT_AS", (1 << 32, 1 << 32)),
    ("cpu_s=100", "RLIMIT_CPU", (100, 100 + CPU_GRACE_S)),
]


@pytest.mark.parametrize(("restriction", "name", "expected"), LIMITS)
def test_a_limit_is_lowered_for_good(
    restriction: str, name: str, expected: tuple[int, int]
) -> None:
    said = contained(restriction, f"print(resource.getrlimit(resource.{name}))")
    assert said == str(expected)


def test_a_lower_limit_of_the_system_stays() -> None:
    lowered = "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40));"
    again = f"{lowered} contain(Restrictions(open_files=50));"
    assert contained("", f"{again} print(resource.getrlimit(resource.RLIMIT_NOFILE))") == "(40, 40)"


def test_no_new_privileges() -> None:
    read = "print([l for l in open('/proc/self/status') if l.startswith('NoNewPrivs')][0])"
    assert contained("is_unprivileged=True", read).split() == ["NoNewPrivs:", "1"]


def test_nothing_wanted_changes_nothing() -> None:
    read = "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert contained("", read) == contained("cpu_s=10**6", read)


def test_without_a_network_there_is_no_tcp_to_the_server() -> None:
    with pytest.raises(NotContainedError, match="use_native_io"):
        contain(Restrictions(is_offline=True), is_tcp=True)


def test_restrictions_travel_in_the_environment() -> None:
    wanted = Restrictions(cpu_s=3, is_offline=True)
    assert Restrictions.from_environment({"OTHER": "x", **wanted.to_variables()}) == wanted
    assert Restrictions().to_variables() == {}
    assert Restrictions.from_environment({}) == Restrictions()
    with pytest.raises((ValueError, TypeError)):
        Restrictions.from_environment({RESTRICTIONS_VARIABLE: '{"unknown": 1}'})
