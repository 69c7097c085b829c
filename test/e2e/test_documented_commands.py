"""The commands of the pages that promise to be run, word for word, on their own ports.

They run in a network of their own (Linux namespaces), so that the documents can name TorchServe's
ports, and in an empty folder, with the commands of this environment on the path.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from serving import ROOT, SOURCE_PATHS

# Nothing that is started in them outlives the script, and nobody else is reached from there.
NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+# ([^#\n]+)$")


def has_namespaces() -> bool:
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    words = [*NAMESPACES, "--mount-proc", "ip", "link", "set", "lo", "up"]
    return subprocess.run(words, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not has_namespaces(), reason="needs namespaces of Linux, and ip"),
    pytest.mark.skipif(not shutil.which("curl"), reason="needs curl"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl"),
]


class Command(NamedTuple):
    """text: one or more lines of the page. said: what its output has to contain, "" for nothing."""

    text: str
    said: str


def commands(page: str) -> Iterator[Command]:
    for block in _BLOCK.findall(page):
        for text in re.split(r"(?<!\\)\n", block.rstrip("\n")):
            comment = _COMMENT.search(text)
            said = comment[1].partition(";")[0].strip() if comment else ""
            yield Command(text, said)


def test_commands_are_found_with_what_they_say() -> None:
    page = "text\n```bash\na b \\\n  c   # it; and why\nd '#' e\n```\n```json\nno\n```\n"
    assert list(commands(page)) == [
        Command("a b \\\n  c   # it; and why", "it"),
        Command("d '#' e", ""),
    ]


@pytest.mark.parametrize("name", ["security.md", "snapshots.md"])
def test_the_commands_of_a_page_do_what_it_says(name: str, tmp_path: Path) -> None:
    if name == "security.md":
        pytest.importorskip("cryptography")
    found = list(commands((ROOT / "docs" / name).read_text()))
    assert len(found) > 10
    outputs, folder, temp = tmp_path / "outputs", tmp_path / "empty", tmp_path / "tmp"
    for path in (outputs, folder, temp):
        path.mkdir()
    script = [f"cd {shlex.quote(str(folder))}"]
    for number, command in enumerate(found):
        output = shlex.quote(str(outputs / str(number)))
        script += ["{", command.text, f"}} > {output} 2>&1; echo $? > {output}.status"]
    (tmp_path / "script").write_text("\n".join(["ip link set lo up", *script, ""]))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(SOURCE_PATHS),
        "TMPDIR": str(temp),
    }
    environment.pop("TEMP", None)
    subprocess.run(
        [*NAMESPACES, "--mount-proc", "bash", str(tmp_path / "script")],
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=360,
        check=True,
    )
    wrong = []
    for number, command in enumerate(found):
        output = (outputs / str(number)).read_text(errors="replace")
        status = (outputs / f"{number}.status").read_text().strip()
        if status != "0" or command.said not in output:
            wrong.append(f"$ {command.text}\nstatus {status}\n{output[-1500:]}")
    assert not wrong, "\n\n".join(wrong)
