"""What a worker is started with: command line, environment, address and port, as tables."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.core.errors import InvalidArgument
from ts_frontend.core.model import Model, ModelConfig, ModelId, ParallelType, TorchrunConfig
from ts_frontend.workers.environment import PortAllocator, WorkerLaunch, split_launcher_args
from ts_frontend.workers.process import WorkerProcess
from ts_frontend.workers.zygote import Zygote

SCRIPT = "/home/ts/model_service_worker.py"
UNIX = ["--sock-type", "unix", "--sock-name", "/sockets/.ts.sock.9000"]
METRICS = ["--metrics-config", "/etc/metrics.yaml"]


def new_launch(**fields: Any) -> WorkerLaunch:
    defaults: dict[str, Any] = {
        "home": "/home",
        "python": "/bin/python",
        "environment": {},
        "socket_dir": "/sockets",
        "metrics_config": "/etc/metrics.yaml",
    }
    return WorkerLaunch(**{**defaults, **fields})


def new_model(
    path: str = "/models/m", *, handler: str = "h", runtime: str = "python", **config: Any
) -> Model:
    return Model(
        ModelId("m", "1.0"), ModelConfig(**config), path=path, handler=handler, runtime=runtime
    )


TORCHRUN = TorchrunConfig(nproc_per_node=4, rdzv_backend="c10d", omp_threads=3)
TORCHRUN_COMMAND = [
    *("torchrun", "--nnodes", "1", "--nproc-per-node", "4"),
    *("--log-dir", "logs/torchelastic_ts", "--rdzv-backend", "c10d"),
]
OWN_PLACE = ["--rdzv-endpoint", "localhost:0"]  # one port for all is where two servers meet
TORCHRUN_END = ["--rdzv-id", "m_9000", "--max-restarts", "1"]

COMMANDS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({}, {}, ["/bin/python", SCRIPT, *UNIX, *METRICS]),
    (
        {"connection": "tcp"},
        {},
        ["/bin/python", SCRIPT, "--sock-type", "tcp", "--port", "9000", *METRICS],
    ),
    ({}, {"async_communication": True}, ["/bin/python", SCRIPT, *UNIX, *METRICS, "--async"]),
    ({}, {"runtime": "python3"}, ["python3", SCRIPT, *UNIX, *METRICS]),
    (
        {"cpu_launcher_args": ["--ncore_per_instance", "2"]},
        {},
        [
            *("/bin/python", "-m", "torch.backends.xeon.run_cpu", "--ncore_per_instance", "2"),
            *(SCRIPT, *UNIX, *METRICS),
        ],
    ),
    # torchrun takes the interpreter's place for the kinds that it serves, and only for those.
    (
        {},
        {"parallel_type": ParallelType.PIPELINE, "torchrun": TORCHRUN},
        [*TORCHRUN_COMMAND, *OWN_PLACE, *TORCHRUN_END, SCRIPT, *UNIX, *METRICS],
    ),
    (
        {},
        {
            "parallel_type": ParallelType.TENSOR,
            "torchrun": TorchrunConfig(nproc_per_node=4, rdzv_endpoint="host:1"),
        },
        [
            *(*TORCHRUN_COMMAND, "--rdzv-endpoint", "host:1", *TORCHRUN_END),
            *(SCRIPT, *UNIX, *METRICS),
        ],
    ),
    (
        {},
        {
            "parallel_type": ParallelType.PIPELINE,
            "torchrun": TorchrunConfig(
                nproc_per_node=4, rdzv_conf="timeout=9", monitor_interval_s=2, node_rank=1
            ),
        },
        [
            *(*TORCHRUN_COMMAND, *OWN_PLACE, "--rdzv-conf", "timeout=9"),
            *("--monitor-interval", "2", "--node-rank", "1"),
            *(*TORCHRUN_END, SCRIPT, *UNIX, *METRICS),
        ],
    ),
    (
        {},
        {
            "parallel_type": ParallelType.TENSOR,
            "torchrun": TorchrunConfig(nnodes=2, nproc_per_node=4),
        },
        [
            *("torchrun", "--nnodes", "2", *TORCHRUN_COMMAND[3:], *TORCHRUN_END),
            *(SCRIPT, *UNIX, *METRICS),
        ],
    ),
    (
        {},
        {"parallel_type": ParallelType.CUSTOM, "torchrun": TORCHRUN},
        ["/bin/python", SCRIPT, *UNIX, *METRICS],
    ),
    ({}, {"torchrun": TORCHRUN}, ["/bin/python", SCRIPT, *UNIX, *METRICS]),
]


@pytest.mark.parametrize(("server", "model", "command"), COMMANDS)
def test_command(server: dict[str, Any], model: dict[str, Any], command: list[str]) -> None:
    assert new_launch(**server).command(new_model(**model), 9000) == command


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="Invalid RuntimeType value: LSP"):
        new_launch().command(new_model(runtime="LSP"), 9000)


def make_venv(folder: Path) -> str:
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return str(python)


def interpreter_of(model: Model) -> str:
    return new_launch().command(model, 9000)[0]


def test_a_models_own_environment_runs_it(tmp_path: Path) -> None:
    python = make_venv(tmp_path)
    assert interpreter_of(new_model(str(tmp_path), use_venv=True)) == python
    assert interpreter_of(new_model(str(tmp_path))) == "/bin/python"
    assert interpreter_of(new_model(str(tmp_path), use_venv=True, runtime="python3")) == "python3"


def test_without_an_environment_the_servers_python_runs_it(tmp_path: Path) -> None:
    assert interpreter_of(new_model(str(tmp_path), use_venv=True)) == "/bin/python"


def test_a_linked_models_environment_lies_beside_the_link(tmp_path: Path) -> None:
    """A folder of the user's is linked to and stays as it is."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    (ours / "link").symlink_to(theirs)
    python = make_venv(ours)
    assert interpreter_of(new_model(str(ours / "link"), use_venv=True)) == python


# The server's way, the model -> whether its workers are forked.
STARTS = [
    ("spawn", {}, False),
    ("fork", {}, True),
    ("spawn", {"worker_start": "fork"}, True),
    ("fork", {"worker_start": "spawn"}, False),
    ("fork", {"runtime": "python3"}, False),
    ("fork", {"parallel_type": ParallelType.CUSTOM}, False),
    ("fork", {"parallel_type": ParallelType("tp"), "torchrun": TorchrunConfig()}, False),
]


@pytest.mark.parametrize(("way", "model", "is_forked"), STARTS)
def test_who_is_forked(way: str, model: dict[str, Any], is_forked: bool) -> None:
    zygote = Zygote("/bin/python", "/", {})
    launch = new_launch(zygote=zygote, worker_start=way)
    assert launch.starter(new_model(**model)) == (
        zygote.start if is_forked else WorkerProcess.start
    )


def test_an_interpreter_of_its_own_or_a_launcher_is_no_fork(tmp_path: Path) -> None:
    make_venv(tmp_path)
    zygote = Zygote("/bin/python", "/", {})
    launch = new_launch(zygote=zygote, worker_start="fork")
    assert launch.starter(new_model(str(tmp_path), use_venv=True)) == WorkerProcess.start
    launch = new_launch(zygote=zygote, worker_start="fork", cpu_launcher_args=[])
    assert launch.starter(new_model()) == WorkerProcess.start
    assert new_launch(worker_start="fork").starter(new_model()) == WorkerProcess.start


# Handler, inherited PYTHONPATH, home -> PYTHONPATH, with {model} for the model's folder.
PYTHON_PATHS = [
    ("handler", None, "/home", ["{model}", "/home"]),
    ("handler.py", "", "/home", ["{model}", "/home"]),
    ("handler.py", "/a:/b", "/home", ["/a", "/b", "{model}", "/home"]),
    ("sub/dir/handler.py:handle", None, "/home", ["sub/dir", "{model}", "/home"]),
    ("/abs/handler.py:handle", "/a", "/home", ["/abs", "/a", "{model}", "/home"]),
    ("handler.py:handle", "/a", "/home", ["/a", "{model}", "/home"]),
    ("sub/handler.py", "/a", "/home", ["/a", "{model}", "/home"]),
    ("handler", "/a", "/usr/lib/site-packages", ["/a", "{model}"]),
    ("handler", "/a", "/usr/lib/dist-packages", ["/a", "{model}"]),
]


@pytest.mark.parametrize(("handler", "inherited", "home", "path"), PYTHON_PATHS)
def test_python_path(
    handler: str, inherited: str | None, home: str, path: list[str], tmp_path: Path
) -> None:
    environment = {} if inherited is None else {"PYTHONPATH": inherited}
    launch = new_launch(home=home, environment=environment)
    found = launch.worker_environment(new_model(str(tmp_path), handler=handler), ())["PYTHONPATH"]
    assert found == ":".join(path).format(model=os.path.realpath(tmp_path))


def test_a_linked_model_is_found_by_both_its_names(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "theirs")
    environment = new_launch().worker_environment(new_model(str(link)), ())
    real = os.path.realpath(tmp_path / "theirs")
    assert environment["PYTHONPATH"] == f"{real}:{tmp_path}:/home"


PARALLEL = {"parallel_type": ParallelType.TENSOR, "parallel_level": 2}
# Model configuration, its GPUs -> variables that are set, variables that are not.
VARIABLES: list[tuple[dict[str, Any], tuple[int, ...], dict[str, str], list[str]]] = [
    ({}, (), {}, ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LOGLEVEL"]),
    ({}, (1,), {}, ["CUDA_VISIBLE_DEVICES"]),  # an ordinary worker sees every device
    (PARALLEL, (2, 3), {"CUDA_VISIBLE_DEVICES": "2,3"}, ["OMP_NUM_THREADS"]),
    (PARALLEL, (), {}, ["CUDA_VISIBLE_DEVICES"]),
    ({**PARALLEL, "torchrun": TORCHRUN}, (), {"OMP_NUM_THREADS": "3", "LOGLEVEL": "INFO"}, []),
    ({"torchrun": TORCHRUN}, (), {}, ["OMP_NUM_THREADS", "LOGLEVEL"]),
    (
        {"parallel_type": ParallelType.CUSTOM, "parallel_level": 2},
        (0, 1),
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        [],
    ),
]


@pytest.mark.parametrize(("config", "gpus", "present", "absent"), VARIABLES)
def test_variables_of_a_kind_of_model(
    config: dict[str, Any], gpus: tuple[int, ...], present: dict[str, str], absent: list[str]
) -> None:
    environment = new_launch().worker_environment(new_model(**config), gpus)
    assert present.items() <= environment.items()
    assert environment.keys().isdisjoint(absent)


def test_the_servers_variables_win_over_inherited_ones() -> None:
    launch = new_launch(
        environment={"PATH": "/bin", "TS_IPEX_ENABLE": "maybe"},
        variables={"TS_IPEX_ENABLE": "true"},
    )
    environment = launch.worker_environment(new_model(), ())
    assert environment["PATH"] == "/bin"
    assert environment["TS_IPEX_ENABLE"] == "true"


# Addresses.


def test_addresses() -> None:
    assert new_launch().address(9001) == "/sockets/.ts.sock.9001"
    assert new_launch(connection="tcp").address(9001) == "127.0.0.1:9001"


def test_a_socket_path_that_unix_would_refuse_is_a_clear_error() -> None:
    """The worker could only say "AF_UNIX path too long" and die, again and again."""
    room = 107 - len("/.ts.sock.65535")
    new_launch(socket_dir="/" + "x" * (room - 1))
    with pytest.raises(InvalidArgument, match=r"108 bytes .* 107.*shorter temporary directory"):
        new_launch(socket_dir="/" + "x" * room)
    # Bytes count, not characters; and only where there are sockets.
    with pytest.raises(InvalidArgument):
        new_launch(socket_dir="/" + "é" * (room // 2 + 1))
    new_launch(socket_dir="/" + "x" * 200, connection="tcp")


def test_what_an_ended_worker_left_is_removed(tmp_path: Path) -> None:
    launch = new_launch(socket_dir=str(tmp_path))
    for port in (9000, 9001, 9002):
        Path(launch.address(port)).touch()
    launch.clear_address(9000, width=2)
    launch.clear_address(9000, width=2)  # or had removed itself
    assert [path.name for path in tmp_path.iterdir()] == [".ts.sock.9002"]


def test_launcher_arguments_are_split_as_a_shell_does() -> None:
    assert split_launcher_args("--ninstances 2 --log_path 'a b'") == [
        *("--ninstances", "2", "--log_path", "a b")
    ]


# Ports.


def test_the_smallest_free_port_is_taken() -> None:
    ports = PortAllocator(9000, is_tcp=False)
    assert [ports.take() for _ in range(3)] == [9000, 9001, 9002]
    ports.give_back(9001)
    assert [ports.take(), ports.take()] == [9001, 9003]


def test_a_wide_worker_takes_ports_in_a_row() -> None:
    ports = PortAllocator(9000, is_tcp=False)
    assert [ports.take(2), ports.take(1), ports.take(2)] == [9000, 9002, 9003]
    ports.give_back(9002)
    assert ports.take(2) == 9005
    ports.give_back(9000, 2)
    assert ports.take(3) == 9000


def test_the_ports_have_an_end() -> None:
    ports = PortAllocator(65534, is_tcp=False)
    assert ports.take(2) == 65534
    with pytest.raises(InvalidArgument, match="No free worker port from 65534"):
        ports.take()
    ports.give_back(65534)
    with pytest.raises(InvalidArgument):
        ports.take(2)
    assert ports.take() == 65534


def test_a_tcp_port_of_somebody_else_is_passed_over() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        assert PortAllocator(port, is_tcp=False).take() == port
        assert PortAllocator(port, is_tcp=True).take() > port


@given(st.lists(st.one_of(st.integers(1, 4), st.integers(-20, -1)), max_size=30))
def test_no_port_is_given_twice(steps: list[int]) -> None:
    """A positive step takes so many; a negative one gives an earlier take back."""
    ports = PortAllocator(9000, is_tcp=False)
    takes: list[range] = []
    for step in steps:
        if step > 0:
            first = ports.take(step)
            taken = range(first, first + step)
            assert not {port for old in takes for port in old} & set(taken)
            takes.append(taken)
        elif takes:
            back = takes.pop(step % len(takes))
            ports.give_back(back.start, len(back))
    for back in takes:
        ports.give_back(back.start, len(back))
    assert ports.take(100) == 9000


def test_the_line_for_a_shell_has_what_the_server_would_set_and_the_shell_has_not() -> None:
    launch = new_launch(environment={"HOME": "/root"}, variables={"TS_IPEX_ENABLE": "a b"})
    line = launch.shell_line(new_model("/models/it's"), 9000, [])
    change, command = line.split(" && ")
    assert shlex.split(change) == ["cd", "/models/it's"]
    words = shlex.split(command)
    variables = dict(word.split("=", 1) for word in words if word.split("=")[0].isupper())
    assert words[len(variables) :] == ["/bin/python", SCRIPT, *UNIX, *METRICS]
    assert variables["TS_IPEX_ENABLE"] == "a b"
    assert variables["PYTHONPATH"] == "/models/it's:/home"
    assert "HOME" not in variables
    assert "TS_WORKER_DIE_WITH_PARENT" not in variables


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({}, 1),
        ({"parallel_type": ParallelType.TENSOR, "torchrun": TORCHRUN}, 4),
        ({"parallel_type": ParallelType.CUSTOM, "parallel_level": 4}, 1),
        (
            {
                "parallel_type": ParallelType.TENSOR,
                "torchrun": TORCHRUN,
                "async_communication": True,
            },
            1,
        ),
    ],
)
def test_so_many_ranks_are_spoken_to(config: dict[str, Any], count: int) -> None:
    assert new_launch().ranks(new_model(**config)) == count


def test_a_worker_behind_a_launcher_ends_with_the_launcher() -> None:
    """The server is not its parent: one that insists on that ends at once."""

    def parent_of(launch: WorkerLaunch, **config: Any) -> str:
        environment = launch.worker_environment(new_model(**config), [])
        return environment["TS_WORKER_DIE_WITH_PARENT"]

    assert parent_of(new_launch()) == str(os.getpid())
    assert parent_of(new_launch(), parallel_type=ParallelType.TENSOR, torchrun=TORCHRUN) == "1"
    assert parent_of(new_launch(cpu_launcher_args=["--ninstances", "1"])) == "1"
