import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from ts import model_server
from ts.arg_parser import ArgParser
from ts.model_server import ServerCommand, is_server, read_config, read_pid, wait_for_end, write_pid

# Speaks the readiness protocol. Its behaviour is the first word of the file "script" in its folder;
# its arguments are kept in the file "argv". `ts_frontend` in its name makes it count as a server.
FAKE_SERVER = """
import os, pathlib, signal, sys, time

here = pathlib.Path(__file__).parent
(here / "argv").write_text("\\n".join(sys.argv[1:]))
behaviour = (here / "script").read_text().split()
fd = int(sys.argv[sys.argv.index("--ready-fd") + 1])

def tell(text):
    os.write(fd, text.encode())

if "stubborn" in behaviour:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif "orderly" in behaviour:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
if "ready" in behaviour:
    tell("PROGRESS loading 1 of 2 models\\nREA")
    tell("DY inference http://127.0.0.1:8080\\n")
elif "fails" in behaviour:
    tell("FAILED Invalid configuration: a\\\\nInvalid configuration: b\\n")
    sys.exit(1)
elif "slow" in behaviour:
    tell("PROGRESS loading 3 of 5 models\\n")
    while not (here / "go").exists():
        time.sleep(0.01)
    tell("READY now\\n")
elif "dies" in behaviour:
    sys.exit(7)
elif "killed" in behaviour:
    os.kill(os.getpid(), signal.SIGKILL)
elif "mute" in behaviour:
    signal.pause()
if "then_crashes" in behaviour:
    sys.exit(5)
if "then_ends" in behaviour:
    sys.exit(0)
while True:
    signal.pause()
"""


@pytest.fixture
def command(tmp_path):
    """Makes ServerCommand objects around a fake server in `command.folder`."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "store").mkdir()
    server = folder / "ts_frontend_fake.py"
    server.write_text(textwrap.dedent(FAKE_SERVER))
    made = []

    def make(*argv, behaviour="orderly ready", environ=None, **options):
        (folder / "script").write_text(behaviour)
        new = ServerCommand(
            ArgParser.extract_args(list(argv)),
            {"PATH": os.environ["PATH"], **(environ or {})},
            str(folder),
            server=[sys.executable, "-S", str(server)],
            pid_file=str(folder / "pid"),
            **options,
        )
        made.append(new)
        return new

    make.folder = folder
    make.pid_file = folder / "pid"
    yield make
    for one in made:
        if one.process is not None:
            if one.process.poll() is None:
                one.process.kill()
            one.process.wait()


def start(command, *argv, **options):
    return command("--start", "--model-store", "store", *argv, **options)


def test_start_waits_until_the_server_is_ready(command, capsys):
    started = start(command)
    assert started.start() == 0
    pid = started.process.pid
    assert command.pid_file.read_text() == str(pid)
    assert capsys.readouterr().out == (
        f"TorchServe is ready (pid {pid}). inference http://127.0.0.1:8080\n"
        f"Logs: {command.folder / 'logs'}\n"
    )
    assert is_server(pid)


def test_start_is_the_default_action(command):
    assert command("--model-store", "store").start() == 0


def test_a_second_start_is_refused(command, capsys):
    assert start(command).start() == 0
    second = start(command)
    assert second.start() == 1
    assert second.process is None
    assert (
        "TorchServe is already running, please use torchserve --stop to stop TorchServe."
        in capsys.readouterr().out
    )


def test_flags_reach_the_server(command):
    (command.folder / "my.properties").write_text("")
    started = start(
        command,
        *("--ts-config", "my.properties", "--workflow-store", "store"),
        *("--models", "a.mar", "b=c.mar", "--ncs", "--dt", "--enable-model-api", "--ppath", "p"),
    )
    assert started.start() == 0
    *flags, name, _fd = (command.folder / "argv").read_text().split("\n")
    assert flags == [
        "--ts-config=my.properties",
        "--model-store=store",
        "--workflow-store=store",
        "--plugins-path=p",
        "--models",
        "a.mar",
        "b=c.mar",
        "--no-config-snapshots",
        "--disable-token-auth",
        "--enable-model-api",
    ]
    assert name == "--ready-fd"


class TestFailedStart:
    def test_the_reason_is_shown(self, command, capsys):
        assert start(command, behaviour="fails").start() == 1
        assert capsys.readouterr().out == (
            "TorchServe did not start: Invalid configuration: a\nInvalid configuration: b\n"
            f"Its log: {command.folder / 'logs' / 'ts_log.log'}\n"
        )
        assert not command.pid_file.exists()

    @pytest.mark.parametrize(
        ("behaviour", "how"), [("dies", "with status 7"), ("killed", "by signal 9")]
    )
    def test_a_server_that_ends_without_a_word(self, command, capsys, behaviour, how):
        assert start(command, behaviour=behaviour).start() == 1
        assert f"the server process ended {how} before it was ready." in capsys.readouterr().out
        assert not command.pid_file.exists()

    def test_a_server_that_takes_long_is_waited_for(self, command, capsys, monkeypatch):
        said = []

        def say(text):
            said.append(text)
            (command.folder / "go").touch()

        monkeypatch.setattr(model_server, "_say", say)
        assert start(command, behaviour="orderly slow", progress_interval_s=0.2).start() == 0
        # The first may come before the server has said anything.
        assert set(said[:-2]) <= {"Still starting.", "Still starting: loading 3 of 5 models"}
        assert said[-2].endswith("now")

    def test_a_signal_while_waiting_stops_the_server(self, command):
        starting = start(command, behaviour="mute")

        def interrupt():
            wait_until(lambda: (command.folder / "argv").exists())
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        assert starting.start() == 128 + signal.SIGINT
        thread.join()
        assert starting.process.returncode == -signal.SIGTERM
        assert not command.pid_file.exists()


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestForeground:
    @pytest.mark.parametrize(("behaviour", "status"), [("then_ends", 0), ("then_crashes", 1)])
    def test_start_ends_with_the_server(self, command, behaviour, status):
        started = start(command, "--foreground", behaviour=f"ready {behaviour}")
        assert started.start() == status
        assert started.process.returncode is not None
        assert not command.pid_file.exists()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signals_are_passed_on(self, command, number, monkeypatch):
        started = start(command, "--foreground")
        threads = []

        def say(text):
            if text.startswith("Logs:"):
                threads.append(threading.Timer(0, os.kill, (os.getpid(), number)))
                threads[0].start()

        monkeypatch.setattr(model_server, "_say", say)
        assert started.start() == 0
        assert started.process.returncode == 143
        threads[0].join()

    def test_a_stop_from_elsewhere_is_no_failure(self, command, monkeypatch):
        started = start(command, "--foreground")
        threads = []

        def say(text):
            if text.startswith("Logs:"):
                threads.append(threading.Thread(target=command("--stop").stop))
                threads[0].start()

        monkeypatch.setattr(model_server, "_say", say)
        assert started.start() == 0
        threads[0].join()


class TestStop:
    def test_stop_does_not_wait(self, command, capsys):
        started = start(command, behaviour="stubborn ready")
        started.start()
        (command.folder / "key_file.json").write_text("{}")
        capsys.readouterr()
        assert command("--stop").stop() == 0
        assert capsys.readouterr().out == "TorchServe has stopped.\n"
        assert started.process.poll() is None
        assert not command.pid_file.exists()
        assert not (command.folder / "key_file.json").exists()

    def test_with_foreground_it_waits(self, command, capsys):
        started = start(command)
        started.start()
        capsys.readouterr()
        assert command("--stop", "--foreground").stop() == 0
        assert capsys.readouterr().out == ""
        assert not is_server(started.process.pid)

    def test_a_server_that_does_not_end(self, command, capsys):
        started = start(command, behaviour="stubborn ready")
        started.start()
        assert command("--stop", "--foreground", stop_timeout_s=0.1).stop() == 1
        assert "Stopping TorchServe took too long." in capsys.readouterr().out
        assert command.pid_file.exists()  # so that it can be stopped again

    def test_nothing_runs(self, command, capsys):
        assert command("--stop").stop() == 0
        assert capsys.readouterr().out == "TorchServe is not currently running.\n"

    def test_the_server_is_dead(self, command, capsys):
        started = start(command)
        started.start()
        started.process.kill()
        started.process.wait()
        capsys.readouterr()
        assert command("--stop").stop() == 0
        assert capsys.readouterr().out == "TorchServe already stopped.\n"
        assert not command.pid_file.exists()


class TestPidFile:
    def test_a_dead_pid_is_removed(self, command, capsys):
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        command.pid_file.write_text(str(ended.pid))
        assert start(command).start() == 0
        assert capsys.readouterr().out.startswith("Removing orphan pid file.\n")

    def test_a_number_used_again_by_another_program_is_left_alone(self, command, capsys):
        other = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        command.pid_file.write_text(str(other.pid))
        assert command("--stop").stop() == 0
        assert capsys.readouterr().out == "TorchServe already stopped.\n"
        assert other.poll() is None
        other.communicate(b"\n")

    @pytest.mark.parametrize("text", ["", "x", "-1", "0"])
    def test_nonsense_in_the_file(self, command, text):
        command.pid_file.write_text(text)
        assert start(command).start() == 0

    def test_a_link_is_replaced_not_followed(self, tmp_path):
        target = tmp_path / "target"
        target.write_text("precious")
        (tmp_path / "pid").symlink_to(target)
        write_pid(str(tmp_path / "pid"), 5)
        assert read_pid(str(tmp_path / "pid")) == 5
        assert target.read_text() == "precious"

    def test_a_zombie_is_not_running(self):
        process = subprocess.Popen([sys.executable, "-c", "", "ts_frontend"])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_server(process.pid)
        assert wait_for_end(process.pid, 0)
        process.wait()


class TestChecks:
    @pytest.mark.parametrize(
        ("argv", "environ", "message"),
        [
            (["--ts-config", "gone"], {}, "--ts-config file not found: gone"),
            ([], {"TS_CONFIG_FILE": "gone"}, "--ts-config file not found: gone"),
            (["--log-config", "gone"], {}, "--log-config file not found: gone"),
            (["--cpp-log-config", "gone"], {}, "--cpp-log-config file not found: gone"),
            (["--model-store", "gone"], {}, "--model-store directory not found: gone"),
            ([], {}, "Missing mandatory parameter --model-store"),
            (
                ["--model-store", "store", "--workflow-store", "gone"],
                {},
                "--workflow-store directory not found: gone",
            ),
            (
                ["--model-store", "store"],
                {"TEMP": "/gone"},
                "Invalid temp directory: /gone, please check TEMP environment variable.",
            ),
        ],
    )
    def test_what_is_missing(self, command, capsys, argv, environ, message):
        checked = command(*argv, environ=environ)
        assert checked.start() == 1
        assert capsys.readouterr().out == message + "\n"
        assert checked.process is None

    def test_the_model_store_may_be_in_the_file(self, command):
        (command.folder / "config.properties").write_text("# c\nmodel_store = store\n")
        assert command().start() == 0
        assert "--model-store" not in (command.folder / "argv").read_text()

    def test_the_model_store_may_be_in_the_environment(self, command):
        (command.folder / "config.properties").write_text("enable_envvars_config=true")
        assert command(environ={"TS_MODEL_STORE": "/x"}).start() == 0

    def test_a_store_to_be_filled_in_is_not_looked_for(self, command):
        (command.folder / "config.properties").write_text("model_store=$$STORE$$")
        assert command().start() == 0

    def test_vmargs_are_reported(self, command, capsys):
        (command.folder / "config.properties").write_text("vmargs=-Xmx4g\n")
        assert start(command).start() == 0
        assert "vmargs has no effect" in capsys.readouterr().out


def test_read_config(tmp_path):
    path = tmp_path / "c"
    path.write_text("# a=1\n!b=2\n c = 3=4 \nnothing\n")
    assert read_config(str(path)) == {"c": "3=4"}
    assert read_config(str(tmp_path / "gone")) == {}


class TestArguments:
    def test_short_names(self):
        arguments = ArgParser.extract_args(["--ncs", "--ppath", "p", "--dt"])
        assert arguments.no_config_snapshots
        assert arguments.plugins_path == "p"
        assert arguments.disable_token_auth

    @pytest.mark.parametrize("argv", [["--start", "--stop"], ["-v", "--start"], ["--nonsense"]])
    def test_what_is_refused(self, argv, capsys):
        with pytest.raises(SystemExit) as ended:
            ArgParser.extract_args(argv)
        assert ended.value.code == 2
        assert "usage: torchserve" in capsys.readouterr().err


def run_command(*argv, **options):
    return subprocess.run(
        [sys.executable, "-m", "ts.model_server", *argv],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_version():
    result = run_command("--version")
    assert result.returncode == 0
    assert result.stdout == f"TorchServe Version is {model_server.__version__}\n"


def test_exit_status_of_the_command(tmp_path):
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    stopped = run_command("--stop", env=environ, cwd=tmp_path)
    assert (stopped.returncode, stopped.stdout) == (0, "TorchServe is not currently running.\n")
    started = run_command("--start", env=environ, cwd=tmp_path)
    assert (started.returncode, started.stdout) == (
        1,
        "Missing mandatory parameter --model-store\n",
    )


def test_the_command_is_light():
    """No torch, no third-party package: a person waits for this."""
    code = (
        "import sys, ts.model_server\n"
        "heavy = {'torch', 'numpy', 'psutil', 'yaml', 'asyncio', 'ts_frontend'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
