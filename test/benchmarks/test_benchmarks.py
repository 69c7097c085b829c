"""The benchmark tool: its arithmetic, its plans, what it reads from clients and /proc, its pages,
and short runs against the floor.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from benchmarks import machine, payloads, report
from benchmarks.floor import worker as floor_worker
from benchmarks.load import grpc_client
from benchmarks.load.clients import Request
from benchmarks.load.http_client import AnswerReader, BadAnswer, Job, Load
from benchmarks.load.idle import IdleConnections
from benchmarks.load.outcome import LoadFailed, Outcome, parse
from benchmarks.machine import NoiseLimits, ProcessTree
from benchmarks.plan import (
    CONFIGS,
    Plan,
    PlanError,
    choose_servers,
    choose_works,
    read_plan,
    server_named,
    to_plan,
)
from benchmarks.results import Measurement, Results, WorkInfo
from benchmarks.runner import Runner, estimate_s
from benchmarks.servers import KINDS, kind
from benchmarks.servers.base import (
    Launch,
    Ports,
    RunningServer,
    ServerKind,
    ServerOptions,
    StartFailed,
)
from benchmarks.servers.torchserve import copy_archive
from benchmarks.spread import Spread, percentile, significant
from benchmarks.works import FAMILIES, WORKS, Deployment, Work, by_deployment, grid, select

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads /proc")
NEEDS_FLOOR = pytest.mark.skipif(
    not (importlib.util.find_spec("uvloop") and importlib.util.find_spec("httptools")),
    reason="the floor needs uvloop and httptools",
)


class TestSpread:
    def test_of_nothing(self) -> None:
        assert Spread.of([]) is None

    @pytest.mark.parametrize(
        ("figures", "spread"),
        [([5], (5, 5, 5, 1)), ([3, 1], (2, 1, 3, 2)), ([9, 1, 4], (4, 1, 9, 3))],
    )
    def test_median_and_range(self, figures: list[float], spread: tuple[float, ...]) -> None:
        assert Spread.of(figures) == spread

    @pytest.mark.parametrize(
        ("fraction", "expected"), [(0, 1), (0.5, 6), (0.9, 10), (0.99, 10), (1, 10)]
    )
    def test_percentile(self, fraction: float, expected: float) -> None:
        assert percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], fraction) == expected

    def test_percentile_of_nothing(self) -> None:
        assert percentile([], 0.5) == 0

    @pytest.mark.parametrize(
        ("figure", "text"),
        [
            (0, "0"),
            (0.000012345, "0.000012"),
            (0.12345, "0.123"),
            (1.5, "1.5"),
            (12.345, "12.3"),
            (99.96, "100"),
            (123.6, "124"),
            (1234567.8, "1,234,568"),
        ],
    )
    def test_three_digits(self, figure: float, text: str) -> None:
        assert significant(figure) == text


class TestMachine:
    def test_a_process_name_may_look_like_the_rest_of_the_line(self) -> None:
        before = "77 (a) R 1 (b)) S 12 34 56 0 -1 4194304 1 2 3 4 "
        after = "100 200 30 40 20 0 1 0 9876 1 2"
        stat = machine.parse_stat(before + after)
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        assert (stat.parent, stat.session, stat.started) == (12, 56, 9876)
        assert stat.cpu_s == 370 / ticks_per_s
        assert not stat.is_zombie

    def test_interrupts_are_nobodys(self) -> None:
        times = machine.parse_machine_times("cpu  100 20 30 4000 500 600 700 80 0 0\ncpu0 1 1\n")
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        assert times == (150 / ticks_per_s, 80 / ticks_per_s)

    @pytest.mark.parametrize(
        ("figures", "reason"),
        [
            ({}, ""),
            ({"foreign_s": 1.0}, ""),  # exactly 5% of 2 processors for 10 s
            ({"foreign_s": 1.1}, "other programs used 6%"),
            ({"stolen_s": 3.0}, "15% stolen"),
            ({"slowdown": 2.0}, "machine 2.0 times slower than at its best"),
        ],
    )
    def test_noise(self, figures: dict[str, float], reason: str) -> None:
        quiet = {"elapsed_s": 10.0, "foreign_s": 0.0, "stolen_s": 0.0, "slowdown": 1.0}
        reasons = machine.noise_reasons(NoiseLimits(), processors=2, **{**quiet, **figures})
        assert "; ".join(reasons) == reason

    @LINUX
    def test_a_daemon_in_its_own_session_belongs_to_its_server(self) -> None:
        """The root starts a grandchild in another session, with another environment, and ends."""
        daemon = "import sys; print('up', flush=True); sys.stdin.read()"
        root = (
            "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
            " start_new_session=True)"
        )
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", root, daemon],
            stdin=reader,
            stdout=subprocess.PIPE,
            env={**os.environ, machine.MARK: "of-this-test"},
            start_new_session=True,
        )
        os.close(reader)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.wait(20)
            tree = ProcessTree(process.pid, "of-this-test")
            assert len(tree.alive()) == 1
            assert process.pid not in tree.alive()
            assert os.getpid() not in tree.processes()
            assert tree.cpu_s() >= 0
            assert tree.memory().pss_mib > 0
            assert not ProcessTree(process.pid, "of-another").alive()
        finally:
            os.close(writer)  # ends the daemon
            process.stdout.close()

    @LINUX
    def test_cpu_time_of_ended_children_is_kept(self) -> None:
        """Burns 0.2 s in a child that has ended by the time we look."""
        burn = "import time; t = time.process_time\nwhile t() < 0.2: pass"
        parent = (
            "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]]);"
            "print('burnt', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", parent, burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"burnt\n"
            assert ProcessTree(process.pid, "none").cpu_s() >= 0.15
            process.communicate()

    @LINUX
    def test_describe(self) -> None:
        assert machine.describe_machine().keys() == {"processors", "memory", "system", "python"}


class TestWorks:
    def test_ids_begin_with_their_family(self) -> None:
        assert all(work.id.startswith(work.family) for work in WORKS.values())
        assert {work.family for work in WORKS.values()} == set(FAMILIES)

    def test_select(self) -> None:
        assert [work.id for work in select("W1")] == ["W1-1", "W1-16", "W1-64"]
        assert [work.connections for work in select("W1-16")] == [16]

    def test_grid_names_only_what_differs(self) -> None:
        works = grid(Work("m", "m", "m"), batch_size=[1, 8], workers=[2], connections=[1, 16])
        assert [
            (w.id, w.deployment.batch_size, w.deployment.workers, w.connections) for w in works
        ] == [
            ("m-b1-c1", 1, 2, 1),
            ("m-b1-c16", 1, 2, 16),
            ("m-b8-c1", 8, 2, 1),
            ("m-b8-c16", 8, 2, 16),
        ]

    def test_works_share_a_start(self) -> None:
        works = [WORKS[name] for name in ("W1-1", "W7", "W2-64", "W3-4", "W9-1")]
        ids = [[work.id for work in group] for group in by_deployment(works)]
        assert ids == [["W1-1", "W3-4"], ["W7"], ["W2-64"], ["W9-1"]]

    def test_every_kind_can_be_asked_about_every_work(self) -> None:
        for name in KINDS:
            server = kind(name)(ServerOptions(name, name))
            for work in WORKS.values():
                if not server.why_not(work) and name not in ("ours", "torchserve", "floor"):
                    request = server.request(work)
                    assert request.body
                    assert request.path.startswith("/")


class TestPayloads:
    def test_the_floor_streams_what_all_others_do(self) -> None:
        assert b"".join(floor_worker.CHUNKS) == payloads.answer("stream", "100B")

    def test_sizes(self) -> None:
        assert len(payloads.body("100B")) == 100
        assert len(payloads.body("1MiB")) == 1 << 20
        assert payloads.body("digit.png").startswith(b"\x89PNG")
        assert payloads.body("photo.jpg").startswith(b"\xff\xd8")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "body").write_bytes(b"mine")
        assert payloads.body(str(tmp_path / "body")) == b"mine"

    @pytest.mark.parametrize("name", ["litserve", "mlserver", "bentoml", "pytriton"])
    def test_wrapped_answers_are_unwrapped(self, name: str) -> None:
        said = payloads.answer("echo", "100B")
        assert said is not None
        text = said.decode()
        triton = b'{"model_name":"benchmark"}' + len(said).to_bytes(4, "little") + said
        answers = {
            "litserve": f'{{"data":"{text}"}}'.encode(),
            "mlserver": f'{{"outputs":[{{"name":"answer","data":["{text}"]}}]}}'.encode(),
            "bentoml": said,
            "pytriton": triton,
        }
        server = kind(name)(ServerOptions(name, name))
        assert server.read(WORKS["W1-1"], answers[name]) == said


WRK_OUTPUT = """Running 1s test @ http://127.0.0.1:1/
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.87ms    1.43ms  18.41ms   94.79%
  8112 requests in 1.00s, 1.21MB read
  Non-2xx or 3xx responses: 12
Requests/sec:   8101.40

OUTCOME {"client": "wrk", "requests": 8100, "seconds": 1.001300, "errors": {"connect": 0, \
"read": 1, "write": 0, "status": 12, "timeout": 0}, "p50_ms": 0.4, "p90_ms": 0.9, \
"p99_ms": 7.1, "max_ms": 18.41}
"""


class TestOutcome:
    def test_of_wrk(self) -> None:
        outcome = parse(WRK_OUTPUT)
        assert outcome.requests == 8100
        assert outcome.requests_per_s == pytest.approx(8089.5, abs=0.1)
        assert outcome.errors == {"read": 1, "status": 12}
        assert outcome.failures == 13
        assert (outcome.p50_ms, outcome.p99_ms, outcome.max_ms) == (0.4, 7.1, 18.41)

    def test_both_directions(self) -> None:
        outcome = Outcome("asyncio", 3, 1.5, {"body": 2}, p50_ms=1.25, chunks=60)
        assert parse(f"noise\n{outcome.line()}\nmore\n") == outcome

    def test_a_client_that_says_nothing(self) -> None:
        with pytest.raises(LoadFailed, match="unable to connect"):
            parse("unable to connect to 127.0.0.1:1 Connection refused\n")

    def test_no_time(self) -> None:
        assert Outcome("wrk", 0, 0.0).requests_per_s == 0


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
)


class TestAnswerReader:
    @pytest.mark.parametrize(("answer", "chunks"), [(PLAIN, 1), (CHUNKED, 2)])
    def test_whole_and_byte_by_byte(self, answer: bytes, chunks: int) -> None:
        reader = AnswerReader()
        assert reader.feed(answer)
        assert (reader.status, bytes(reader.body), reader.chunks) == (200, b"hello", chunks)
        reader.begin_next()
        assert [reader.feed(bytes([byte])) for byte in answer].index(True) == len(answer) - 1
        assert (reader.status, bytes(reader.body), reader.chunks) == (200, b"hello", chunks)

    def test_closing_and_empty(self) -> None:
        reader = AnswerReader()
        assert reader.feed(b"HTTP/1.1 503 Busy\r\nConnection: Close\r\nContent-length: 0\r\n\r\n")
        assert reader.is_closing
        assert reader.status == 503

    @pytest.mark.parametrize(
        "answer",
        [
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ],
    )
    def test_nonsense(self, answer: bytes) -> None:
        with pytest.raises(BadAnswer):
            AnswerReader().feed(answer)

    async def test_a_server_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "body").write_bytes(b"")
        job = Job(
            "127.0.0.1", Ports().http, "POST", "/", {}, str(tmp_path / "body"), "", 2, seconds=0.05
        )
        outcome = await Load(job).run()
        assert outcome.requests == 0
        assert outcome.errors["connect"] >= 2


class TestGrpcMessages:
    """Written by hand in the client, so compared with what generated code reads."""

    def test_request_and_response(self) -> None:
        stubs = pytest.importorskip("ts_frontend.grpc.stubs.inference_pb2")
        body = payloads.body("100B") * 2  # longer than one byte of length can say
        request = stubs.PredictionsRequest.FromString(grpc_client.predictions_request("m", body))
        assert request.model_name == "m"
        assert dict(request.input) == {"data": body}
        response = grpc_client.prediction_response(body)
        assert response == stubs.PredictionResponse(prediction=body).SerializeToString()


class TestPlan:
    def test_defaults(self) -> None:
        plan = to_plan({"servers": ["ours"], "works": ["W7"]})
        assert plan == Plan((ServerOptions("ours", "ours"),), (WORKS["W7"],))

    def test_everything(self, tmp_path: Path) -> None:
        (tmp_path / "m.mar").write_bytes(b"")
        plan = to_plan(
            {
                "servers": [
                    "ours",
                    "fastapi@new",
                    {"name": "fast", "kind": "ours", "settings": {"async_logging": True, "n": 3}},
                    {"kind": "torchserve", "python": "ts/bin/python"},
                ],
                "environments": {"ours": "/env/python"},
                "works": [
                    "W1-1",
                    {"id": "mine", "archive": "m.mar", "batch_size": [1, 2], "connections": 4},
                ],
                "rounds": 2,
                "seconds": 0.5,
                "fresh": True,
                "noise": {"slowdown": 3},
            },
            "plan",
            tmp_path,
        )
        assert plan.servers == (
            ServerOptions("ours", "ours", "/env/python"),
            ServerOptions("fastapi@new", "fastapi"),
            ServerOptions("fast", "ours", "/env/python", {"async_logging": "true", "n": "3"}),
            ServerOptions("torchserve", "torchserve", str(tmp_path / "ts/bin/python")),
        )
        assert [work.id for work in plan.works] == ["W1-1", "mine-b1", "mine-b2"]
        assert plan.works[2].deployment == Deployment(batch_size=2, archive=str(tmp_path / "m.mar"))
        assert plan.is_fresh
        assert plan.noise == NoiseLimits(slowdown=3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"servers": []}, "plan: servers: name at least one of ours, "),
            ({"works": []}, "plan: works: name at least one"),
            ({"server": []}, 'plan: there is no key "server"; did you mean servers?'),
            ({"servers": ["torchserv"]}, "plan: servers[0]: there is no server"),
            ({"servers": ["ours", "ours"]}, "plan: servers: ours is there twice"),
            ({"servers": [{"kind": "our"}]}, 'servers[0].kind: there is no "our"'),
            ({"servers": [{"name": "x"}]}, "servers[0]: kind is missing"),
            ({"servers": 3}, "plan: servers: expected a list, found 3"),
            ({"servers": [{"kind": "ours", "settings": {"a": []}}]}, "settings.a: expected one"),
            ({"environments": {"rya": "x"}}, "environments: there is no server"),
            ({"works": ["W0"]}, 'plan: works[0]: there is no work "W0"; families: W1, W2'),
            ({"works": [{"id": "a"}]}, "works[0]: give either archive"),
            ({"works": [{"id": "a", "task": "ecko"}]}, "works[0].task: there is no"),
            ({"works": [{"task": "echo"}]}, "works[0]: id is missing"),
            ({"works": [{"id": "a", "archive": "no.mar"}]}, "archive: there is no file"),
            ({"works": [{"id": "a", "task": "echo", "input": "no"}]}, "input: there is no file"),
            ({"works": [{"id": "a", "task": "echo", "workers": [0]}]}, "whole numbers from 1 up"),
            ({"works": [{"id": "a", "task": "echo", "connections": []}]}, "at least one number"),
            ({"works": [{"id": "a", "task": "echo", "conections": 2}]}, "did you mean connect"),
            ({"rounds": 0}, "plan: rounds: expected a whole number from 1 up, found 0"),
            ({"rounds": True}, "plan: rounds: expected a whole number from 1 up, found True"),
            ({"seconds": "8"}, "plan: seconds: expected a number from 0.1 up, found '8'"),
            ({"fresh": 1}, "plan: fresh: expected true or false, found 1"),
            ({"noise": {"foreing": 1}}, 'plan: noise: there is no key "foreing"'),
        ],
    )
    def test_what_is_wrong_and_where(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(PlanError) as caught:
            to_plan({"servers": ["ours"], "works": ["W7"], **change})
        assert message in str(caught.value)

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match="No such file"):
            read_plan(tmp_path / "none.yaml")
        (tmp_path / "bad.yaml").write_text("a: [")
        with pytest.raises(PlanError, match="not YAML"):
            read_plan(tmp_path / "bad.yaml")
        (tmp_path / "list.yaml").write_text("- a")
        with pytest.raises(PlanError, match=r"list\.yaml: expected keys and values"):
            read_plan(tmp_path / "list.yaml")

    @pytest.mark.parametrize("name", ["full.yaml", "short.yaml", "growth.yaml"])
    def test_the_plans_we_ship(self, name: str) -> None:
        plan = read_plan(CONFIGS / name)
        assert plan.servers[0].name == "ours"

    def test_the_example_of_an_own_model(self, tmp_path: Path) -> None:
        image = "examples/image_classifier/mnist/test_data/3.png"
        for path in ("model_store/mnist.mar", image):
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_bytes(b"")
        assert (ROOT / image).exists()
        folder = tmp_path / "benchmarks" / "configs"
        folder.mkdir(parents=True)
        shutil.copy(CONFIGS / "own-model.yaml", folder)
        plan = read_plan(folder / "own-model.yaml")
        assert len(plan.works) == 8
        assert plan.works[0].payload.endswith("3.png")

    def test_choosing(self) -> None:
        plan = to_plan({"servers": ["ours", "fastapi"], "works": ["W1"]})
        chosen = choose_servers(plan, ["floor", "ours@b"], {"ours": "/a", "ours@b": "/b"})
        assert chosen.servers == (
            ServerOptions("floor", "floor"),
            ServerOptions("ours@b", "ours", "/b"),
        )
        assert [work.id for work in choose_works(plan, ["W1-1", "W7"]).works] == ["W1-1", "W7"]
        with pytest.raises(PlanError, match="--works"):
            choose_works(plan, ["W77"])
        with pytest.raises(PlanError, match="--env"):
            choose_servers(plan, [], {"ray2": "/x"})
        with pytest.raises(PlanError, match="did you mean litserve"):
            choose_servers(plan, ["litserv"], {})

    def test_a_tuned_torchserve_names_files_that_exist(self) -> None:
        settings = server_named("torchserve-tuned").settings
        assert Path(settings["log_config"]).is_file()
        assert Path(settings["metrics_config"]).is_file()

    def test_how_long_it_takes(self) -> None:
        plan = Plan((), (WORKS["W1-1"], WORKS["W1-16"]), rounds=2, seconds=10, warmup_s=1)
        # Two servers start once each and are warmed up and measured for both works.
        servers = [kind(name)(server_named(name)) for name in ("floor", "torchserve")]
        assert estimate_s(plan, {"W1-1": servers, "W1-16": servers}) == pytest.approx(
            2 * 3.5 + servers[1].first_warmup_s + 2 * 2 * 1 + 2 * 2 * 2 * 10.3
        )


def measurement(work: str, server: str, number: int, rate: float, **more: object) -> Measurement:
    return Measurement(
        work,
        server,
        number,
        requests=int(rate),
        seconds=1.0,
        requests_per_s=rate,
        p50_ms=1000 / rate,
        cpu_us_per_request=2e5 / rate,
        client_cpu_s=0.5,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def results() -> Results:
    """Two servers, three rounds; the second round of the rival and all of W7 were noisy."""
    return Results(
        servers={"ours": "ours 1", "rival": "rival 2"},
        works=[WorkInfo.of(WORKS[name]) for name in ("W1-1", "W7", "models-1", "models-100")],
        conditions={"processors": "2 x something"},
        skipped=["ray: not installed"],
        measurements=[
            measurement("W1-1", "ours", 1, 200.0),
            measurement("W1-1", "rival", 1, 100.0, failures=25, failure_kinds="status=25"),
            measurement("W1-1", "ours", 2, 300.0),
            measurement("W1-1", "rival", 2, 10.0, noise="5% stolen"),
            measurement("W1-1", "ours", 3, 400.0),
            measurement("W1-1", "rival", 3, 160.0),
            Measurement("W7", "ours", 1, start_s=0.5, pss_mib=50.0, noise="other programs used 9%"),
            Measurement("W7", "rival", 1, problem="did not start:\n it | died"),
            measurement("models-1", "ours", 1, 1000.0),
            measurement("models-100", "ours", 1, 500.0),
        ],
    )


class TestResults:
    def test_only_quiet_rounds_count(self, results: Results) -> None:
        assert results.spread("W1-1", "rival", "requests_per_s") == (130, 100, 160, 2)

    def test_noisy_rounds_are_better_than_none(self, results: Results) -> None:
        assert results.spread("W7", "ours", "start_s") == (0.5, 0.5, 0.5, 1)
        assert results.spread("W7", "rival", "start_s") is None

    def test_ratios_are_of_one_round(self, results: Results) -> None:
        pairs = results.pairs("W1-1", "ours", "rival", "requests_per_s")
        assert pairs.spread == (2.25, 2, 2.5, 2)
        assert (pairs.quiet, pairs.all) == (2, 3)

    def test_pairs_are_all_noisy(self, results: Results) -> None:
        for each in results.measurements:
            each.noise = each.noise or "5% stolen"
        pairs = results.pairs("W1-1", "ours", "rival", "requests_per_s")
        assert pairs.spread == (2.5, 2, 30, 3)
        assert (pairs.quiet, pairs.all) == (0, 3)

    def test_files_keep_everything(self, results: Results, tmp_path: Path) -> None:
        for each in results.measurements:
            each.p50_ms = each.p50_ms and round(each.p50_ms, 2)  # the file keeps six digits
            if each.cpu_us_per_request:
                each.cpu_us_per_request = round(each.cpu_us_per_request, 2)
        results.write(tmp_path)
        assert Results.read(tmp_path) == results


class TestReport:
    def test_figures(self, results: Results) -> None:
        page = report.render(results, ["requests_per_s.png"])
        assert "| W1-1 | ours | 300 [200..400] | 3.33 [2.5..5] | - |" in page
        assert "| W1-1 | rival | 130 [100..160] |" in page
        assert "| 3 | 1 | 25 (8.47%) |" in page  # runs, noisy, failures
        assert "| W7 | ours | _0.5_ | _50_ | - | 1 | 1 | 0 |" in page
        assert "![requests_per_s.png](requests_per_s.png)" in page

    def test_ratios(self, results: Results) -> None:
        page = report.render(results)
        assert "### `ours` / `rival`" in page
        assert "| W1-1 | **2.25 [2..2.5]** | **0.45 [0.4..0.5]** | - |" in page
        assert "| 2 of 3 |" in page

    def test_worse_is_said_too(self, results: Results) -> None:
        results.servers = {"rival": "rival 2", "ours": "ours 1"}
        page = report.render(results)
        assert "| W1-1 | _0.45 [0.4..0.5]_ | _2.25 [2..2.5]_ |" in page

    def test_growth(self, results: Results) -> None:
        assert "| ours | 1 → 100 | 0.5 | 2 | - | 2 | - |" in report.render(results)

    def test_what_went_wrong(self, results: Results) -> None:
        page = report.render(results)
        assert "* ray: not installed" in page
        assert "* W7, rival, round 1: did not start: it | died" in page
        assert "* W1-1, rival, round 1: of 125 requests 25 failed (status=25)" in page

    def test_a_busy_client_is_marked(self, results: Results) -> None:
        results.measurements[0].client_cpu_s = 0.99
        assert "| W1-1 | ours | 300 [200..400] † |" in report.render(results)

    def test_nothing_was_measured(self, results: Results) -> None:
        results.measurements = []
        assert "## Skipped" in report.render(results)

    @pytest.mark.slow
    def test_plots(self, results: Results, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        from benchmarks import plots

        names = plots.write(results, tmp_path)
        assert names == [
            "requests_per_s.png",
            "latency_p50.png",
            "cpu_per_request.png",
            "memory.png",
            "start.png",
            "growth_models.png",
        ]
        for name in names:
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


class ProgramKind(ServerKind):
    """Serves with a program of this test: `settings["program"]`, which gets its port."""

    start_timeout_s = 20.0

    def why_missing(self) -> str:
        return ""

    def version(self) -> str:
        return "a program"

    def command(self, work: Work, folder: Path, ports: Ports) -> Launch:
        return Launch([self.python, "-c", self.settings["program"], str(ports.http)], {})

    def request(self, work: Work) -> Request:
        return Request("POST", "/", {}, payloads.body(work.payload))


def program_kind(program: str) -> ProgramKind:
    return ProgramKind(ServerOptions("program", "program", sys.executable, {"program": program}))


STUBBORN_ECHO = """
import http.server, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
class Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""


def test_an_archive_keeps_all_but_its_batches_and_workers(tmp_path: Path) -> None:
    config = "batchSize: 2\nresponseTimeout: 7\nhandler: {a: b}\n"
    with zipfile.ZipFile(tmp_path / "old.mar", "w") as archive:
        manifest = {"model": {"modelName": "m", "configFile": "c.yaml"}}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("c.yaml", config)
        archive.writestr("weights", b"123")
    copy_archive(tmp_path / "old.mar", tmp_path / "new.mar", Deployment(batch_size=8, workers=3))
    with zipfile.ZipFile(tmp_path / "new.mar") as archive:
        assert archive.read("weights") == b"123"
        assert json.loads(archive.read("MAR-INF/MANIFEST.json")) == manifest
        assert yaml.safe_load(archive.read("c.yaml")) == {
            "minWorkers": 3,
            "maxWorkers": 3,
            "batchSize": 8,
            "maxBatchDelay": 5,
            "responseTimeout": 7,
            "handler": {"a": "b"},
        }


@LINUX
class TestServers:
    def test_one_that_ends_says_why(self, tmp_path: Path) -> None:
        server = program_kind("import sys; sys.exit('no such model')")
        with pytest.raises(StartFailed, match="it ended: no such model"):
            server.start(WORKS["W1-1"], tmp_path / "folder", tmp_path / "log")

    def test_one_that_does_not_want_to_stop(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("benchmarks.servers.base._STOP_PATIENCE_S", 0.2)
        monkeypatch.setattr("benchmarks.servers.base._ORPHANS_PATIENCE_S", 0.0)
        server = program_kind(STUBBORN_ECHO)
        work = WORKS["W1-1"]
        running = server.start(work, tmp_path / "folder", tmp_path / "log")
        try:
            assert running.start_s > 0
            assert len(running.tree.alive()) == 2
            assert server.check(running, work, server.request(work)) == ""
            other = server.request(WORKS["W3-4"])
            assert server.check(running, work, other).startswith("a wrong answer")
        finally:
            running.stop()
        assert running.has_ended()
        assert "no answer" in server.check(running, work, server.request(work))

    def test_environments_without_the_rival(self) -> None:
        for name in ("litserve", "ray", "pytriton", "mlserver", "bentoml"):
            server = kind(name)(ServerOptions(name, name, "/nowhere/bin/python"))
            assert server.why_missing() == "there is no /nowhere/bin/python"
        server = kind("torchserve")(ServerOptions("torchserve", "torchserve", sys.executable))
        assert "torchserve beside" in server.why_missing()


def floor_plan(*works: str, **more: object) -> Plan:
    return Plan(
        (ServerOptions("floor", "floor", sys.executable), server_named("floor@b", sys.executable)),
        tuple(WORKS[work] for work in works),
        warmup_s=0.0,
        **more,  # type: ignore[arg-type]
    )


@LINUX
@NEEDS_FLOOR
class TestRuns:
    def test_rounds_take_turns_and_noisy_ones_are_repeated(self, tmp_path: Path) -> None:
        """With the built-in client. The limit makes every round a noisy one."""
        plan = floor_plan(
            "W1-1", rounds=1, extra_rounds=1, seconds=0.3, noise=NoiseLimits(slowdown=0.0)
        )
        said: list[str] = []
        runner = Runner(plan, tmp_path, said.append)
        runner._clients.has_wrk = False
        results = runner.run()
        assert [(each.server, each.round) for each in results.measurements] == [
            ("floor", 1),
            ("floor@b", 1),
            ("floor", 2),
            ("floor@b", 2),
        ]
        for each in results.measurements:
            assert not each.problem
            assert each.client == "asyncio"
            assert each.failures == 0
            assert each.requests
            assert each.cpu_us_per_request is not None
            assert each.pss_mib
            assert "slower than at its best" in each.noise
        assert "W1-1" in report.render(results)

    def test_a_stream_a_start_and_idle_connections(self, tmp_path: Path) -> None:
        plan = floor_plan(
            "W6-1", "W7", "idle-10", rounds=1, extra_rounds=0, seconds=0.3, settle_s=0.0
        )
        plan = choose_servers(plan, ["floor"], {})
        runner = Runner(plan, tmp_path, lambda line: None)
        runner._clients.has_wrk = False
        results = runner.run()
        stream, idle, start = sorted(results.measurements, key=lambda each: each.work[1:])
        assert (start.work, stream.work, idle.work) == ("idle-10", "W6-1", "W7")
        assert stream.first_chunk_p50_ms
        assert stream.chunks_per_s
        assert idle.start_s
        assert idle.processes == 2
        assert start.idle_connections_left == 10

    def test_what_a_server_cannot_do_is_skipped(self, tmp_path: Path) -> None:
        plan = choose_servers(floor_plan("W4-32", "models-10"), ["floor"], {})
        results = Runner(plan, tmp_path, lambda line: None).run()
        assert results.measurements == []
        assert results.skipped == [
            "floor for W4-32: only echoes and streams",
            "floor for models-10: serves one model",
        ]

    def test_the_command_for_a_second(self, tmp_path: Path) -> None:
        """As a user types it, with wrk where that is installed, and with everything it writes."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks", "--config", "short.yaml"),
                *("--servers", "floor", "--env", f"floor={sys.executable}", "--works", "W1-16"),
                *("--rounds", "1", "--extra-rounds", "0", "--seconds", "1", "--warmup", "0"),
                *("--out", str(tmp_path / "out")),
            ],
            cwd=ROOT,
            # A benchmark that runs on this machine meanwhile must not hold the test up.
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results = Results.read(tmp_path / "out")
        [measured] = results.measurements
        assert measured.client == ("wrk" if shutil.which("wrk") else "asyncio")
        assert measured.requests
        assert measured.problem == ""
        assert "| W1-16 | floor |" in (tmp_path / "out" / report.REPORT_FILE).read_text()

    def test_a_command_that_makes_no_sense(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--works", "W77"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert 'there is no work "W77"' in done.stderr
        assert done.stdout == ""


@LINUX
class TestIdleConnections:
    def test_those_that_the_server_closed(self, tmp_path: Path) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with IdleConnections.open("127.0.0.1", port, 3) as idle:
                accepted = [listener.accept()[0] for _ in range(3)]
                assert idle.still_open() == 3
                accepted[0].close()
                assert idle.still_open() == 2
                for each in accepted[1:]:
                    each.close()


def test_a_running_server_shows_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\nthree\nfour\n")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        server = RunningServer(process, ProcessTree(process.pid, "x"), Ports(), log)
    assert server.last_words() == "two / three / four"
