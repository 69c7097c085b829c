"""Looks for bytes that break a target, guided by what they reach: `scripts/fuzz SECONDS TARGET...`.

Each target runs in a process of its own under atheris (libFuzzer), for so many seconds. What has
reached something new is kept in `.fuzz/<target>` and is where the next search begins. An input that
breaks the target, takes longer than ten seconds or more than 2 GiB is put into
`test/fuzz/cases/<target>`, where the suite meets it from then on; the status is 1 then.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

CASES = Path(__file__).parent / "cases"
ONE_INPUT_S = 10
MAX_INPUT_BYTES = 8192
MAX_MIB = 2048
BROKEN = 77  # the status of a process whose target has raised
LAST_INPUT_S = 60  # what a search may take beyond its time, with its start
TARGET_NAMES = ("http", "forms", "tensors", "archive", "frames")

_TRIED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_REACHED = re.compile(r"cov: (\d+)")
_BEGAN = re.compile(r"INITED cov: (\d+)")


def search(name: str, seconds: int, corpus: Path) -> int:
    """Look for `seconds`, print what came of it; the status of the search."""
    kept = CASES / name
    kept.mkdir(parents=True, exist_ok=True)
    before = set(kept.iterdir())
    corpus.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fuzz.run", "--one", name, str(kept), str(corpus), str(kept)]
    command += [
        f"-artifact_prefix={kept}/",
        f"-max_total_time={seconds}",
        f"-timeout={ONE_INPUT_S}",
        f"-rss_limit_mb={MAX_MIB}",
        f"-max_len={MAX_INPUT_BYTES}",
        "-len_control=0",  # the seeds are as long as what they stand for
        "-print_final_stats=1",
    ]
    log = corpus.with_suffix(".log")
    with log.open("w") as output:
        done = subprocess.run(
            command, stdout=output, stderr=output, timeout=seconds + LAST_INPUT_S, check=False
        )
    text = log.read_text(errors="replace")
    tried = _TRIED.search(text)
    reached = _REACHED.findall(text) or ["?"]
    began = _BEGAN.search(text)
    new = sorted(set(kept.iterdir()) - before)
    print(
        f"{name:8} {int(tried[1]) if tried else 0:>10} inputs tried, "
        f"edges {began[1] if began else '?'} -> {reached[-1]}, "
        f"{len(list(corpus.iterdir()))} inputs in the corpus, found: "
        + (", ".join(case.name for case in new) or "nothing"),
        flush=True,
    )
    if done.returncode:
        print(f"{name} ended with {done.returncode}; the end of {log}:\n{text[-3000:]}")
    return done.returncode


def search_here(name: str, kept: Path, corpus: Path, flags: list[str]) -> None:
    """The search itself. Never returns: libFuzzer ends the process."""
    import atheris

    # What is imported here for the first time is watched for new paths through it.
    with atheris.instrument_imports(include=["ts_frontend", "ts.protocol", "zipfile", "tarfile"]):
        from fuzz.targets import TARGETS

    target = TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    tried = 0

    def check(data: bytes) -> None:
        nonlocal tried
        tried += 1
        try:
            target.check(data)
        except BaseException:
            # libFuzzer would write it at the end of the process, which its own alarm may cut off.
            case = kept / f"broken-{hashlib.sha1(data, usedforsecurity=False).hexdigest()[:12]}"
            case.write_bytes(data)
            traceback.print_exc()
            print(f"stat::number_of_executed_units: {tried}", file=sys.stderr, flush=True)
            os._exit(BROKEN)

    atheris.Setup([sys.argv[0], str(corpus), *flags], check)
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        search_here(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("seconds", type=int, nargs="?", default=60, help="for each target (60)")
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGET_NAMES)}; all, if none")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGET_NAMES):
        parser.error(f"no targets: {', '.join(unknown)}")
    names = options.targets or TARGET_NAMES
    statuses = [search(name, options.seconds, Path(".fuzz") / name) for name in names]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
