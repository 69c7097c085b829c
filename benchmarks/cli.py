"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import plots, report
from benchmarks.plan import (
    CONFIGS,
    Plan,
    PlanError,
    check,
    choose_servers,
    choose_works,
    known_servers,
    read_plan,
)
from benchmarks.results import Results
from benchmarks.runner import Runner, estimate_s, machine_lock
from benchmarks.servers import KINDS, kind
from benchmarks.servers.base import ENVIRONMENTS
from benchmarks.works import WORKS

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # A kill must stop the servers too: turn it into an exception that unwinds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.install:
        return _install(_names(options.install))
    if options.report:
        return _report_again(options.report)
    try:
        plan = _plan(options)
    except PlanError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        return _list(plan)
    return _run(plan, options.out or RESULTS / time.strftime("%Y-%m-%d-%H%M%S"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures this server and its rivals side by side; see benchmarks/README.md.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=CONFIGS / "full.yaml",
        help="what to measure; a name without a folder is looked for in benchmarks/configs too "
        "(default: full.yaml)",
    )
    parser.add_argument(
        "--servers", metavar="A,B", help=f"instead of the file's: {', '.join(known_servers())}"
    )
    parser.add_argument("--works", metavar="W1,W2-64", help="families or works; see --list")
    parser.add_argument("--rounds", metavar="N", type=int)
    parser.add_argument("--extra-rounds", metavar="N", type=int)
    parser.add_argument("--seconds", metavar="S", type=float, help="length of one measurement")
    parser.add_argument("--warmup", metavar="S", type=float, help="seconds before the first")
    parser.add_argument("--settle", metavar="S", type=float, help="seconds after a start (W7)")
    parser.add_argument(
        "--fresh",
        action="store_true",
        default=None,
        help="start the server anew for every measurement, alone on the machine",
    )
    parser.add_argument(
        "--env",
        metavar="SERVER=PYTHON",
        action="append",
        default=[],
        help="the Python of the environment a server is installed in; may be given often",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="default: benchmarks/results/<date and time>"
    )
    parser.add_argument(
        "--list", action="store_true", help="say what would be measured, how long, and end"
    )
    parser.add_argument(
        "--install",
        metavar="A,B",
        help="only make environments for these rivals, in benchmarks/envs; they are then found "
        "without --env",
    )
    parser.add_argument(
        "--report", metavar="DIR", type=Path, help="only write the report of an earlier run again"
    )
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    config = options.config
    if not config.exists() and config.parent == Path():
        config = CONFIGS / config
    plan = read_plan(config)
    plan = choose_servers(plan, _names(options.servers), _environments(options.env))
    if options.works:
        plan = choose_works(plan, _names(options.works))
    given = {
        "rounds": options.rounds,
        "extra_rounds": options.extra_rounds,
        "seconds": options.seconds,
        "warmup_s": options.warmup,
        "settle_s": options.settle,
        "is_fresh": options.fresh,
    }
    plan = replace(plan, **{name: value for name, value in given.items() if value is not None})
    if plan.rounds < 1 or plan.extra_rounds < 0:
        raise PlanError("--rounds: at least 1; --extra-rounds: at least 0")
    if plan.seconds <= 0 or plan.warmup_s < 0 or plan.settle_s < 0:
        raise PlanError("--seconds: more than 0; --warmup, --settle: at least 0")
    check(plan)
    return plan


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _environments(texts: Sequence[str]) -> dict[str, str]:
    environments = {}
    for text in texts:
        name, equals, python = text.partition("=")
        if not equals or not python:
            raise PlanError(f"--env: expected SERVER=PYTHON, found {text!r}")
        environments[name] = python
    return environments


def _run(plan: Plan, folder: Path) -> int:
    def say(text: str) -> None:
        print(text, flush=True)

    with machine_lock(say):
        runner = Runner(plan, folder, say)
        try:
            runner.run()
        finally:
            # Also of a run that was interrupted: what was measured is worth keeping.
            if runner.results.measurements:
                _write(runner.results, folder)
    if all(each.is_broken for each in runner.results.measurements):
        print("nothing was measured", file=sys.stderr)
        return 1
    return 0


def _write(results: Results, folder: Path) -> None:
    results.write(folder)
    names = plots.write(results, folder) if plots.can_plot() else []
    if not names:
        print("no plots: matplotlib is not installed" if not plots.can_plot() else "no plots")
    print(f"\n{report.write(results, folder, names)}")


def _report_again(folder: Path) -> int:
    try:
        results = Results.read(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"{folder} holds no results: {error!r}", file=sys.stderr)
        return 2
    _write(results, folder)
    return 0


def _install(names: Sequence[str]) -> int:
    for name in names:
        requirements = kind(name).requirements if name in KINDS else ()
        if not requirements:
            print(f'there is nothing to install for "{name}"', file=sys.stderr)
            return 2
        folder = ENVIRONMENTS / name
        print(f"{folder}: {' '.join(requirements)}", flush=True)
        python = folder / "bin" / "python"
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "-q", *requirements],
        ):
            if subprocess.run(command, check=False).returncode:
                print(f"{name} could not be installed", file=sys.stderr)
                return 1
    return 0


def _list(plan: Plan) -> int:
    present = []
    print("servers:")
    for options in plan.servers:
        server = kind(options.kind)(options)
        missing = server.why_missing()
        print(f"  {server.name:<18} {f'skipped: {missing}' if missing else server.version()}")
        if not missing:
            present.append(server)
    _print_others(known_servers(), [server.name for server in plan.servers])
    print("works:")
    able = {}
    for work in plan.works:
        reasons = {server.name: server.why_not(work) for server in present}
        able[work.id] = [server for server in present if not reasons[server.name]]
        print(f"  {work.id:<12} {work.title}")
        for name, reason in reasons.items():
            if reason:
                print(f"  {'':<12} without {name}: {reason}")
    _print_others(WORKS, able)
    print(f"about {estimate_s(plan, able) / 60:.0f} minutes if no round is noisy")
    return 0


def _print_others(all_names: Iterable[str], chosen: Iterable[str]) -> None:
    others = [name for name in all_names if name not in set(chosen)]
    if others:
        print(f"  not in this plan: {', '.join(others)}")
