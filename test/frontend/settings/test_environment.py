import pytest

from ts_frontend.settings.environment import (
    detect_gpus,
    find_home,
    find_temp_dir,
    substitute,
    worker_environment,
)
from ts_frontend.settings.settings import ConfigurationError


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        ("0,1,2", 3),
        ("2", 1),
        ("", 0),
        ("-1", 0),
        ("0,-1,1", 1),
        ("NoDevFiles", 0),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-4b1d", 2),
        (" 0 , 1 ", 2),
    ],
)
def test_visible_devices_decide(visible, count):
    assert detect_gpus({"CUDA_VISIBLE_DEVICES": visible, "PATH": ""}) == count


def put_tool(folder, text):
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(0o755)
    return {"PATH": str(folder)}


def test_nvidia_smi_is_asked(tmp_path):
    environ = put_tool(
        tmp_path,
        "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'; echo '  MIG 1g.10gb Device 0: (UUID: MIG-2)';"
        " echo 'GPU 1: NVIDIA H200 (UUID: GPU-3)'",
    )
    assert detect_gpus(environ) == 2


def test_a_tool_without_its_driver_means_no_gpu(tmp_path):
    assert detect_gpus(put_tool(tmp_path, "echo 'cannot talk to the driver'; exit 9")) == 0


def test_no_tool_means_no_gpu(tmp_path):
    assert detect_gpus({"PATH": str(tmp_path)}) == 0


def test_substitution():
    assert substitute("$$A$$/x/$$B$$", {"A": "1", "B": "2"}) == "1/x/2"
    assert substitute("$A $$ 5$", {}) == "$A $$ 5$"
    with pytest.raises(KeyError):
        substitute("$$MISSING$$", {})


def test_hidden_variables_match_in_full():
    environ = {"AWS_SECRET": "1", "MY_AWS_SECRET": "2", "PATH": "3"}
    assert worker_environment(environ, "AWS_.*") == {"MY_AWS_SECRET": "2", "PATH": "3"}
    assert worker_environment(environ, "") == environ


def test_temp_dir(tmp_path):
    assert find_temp_dir({"TEMP": str(tmp_path), "TMPDIR": "/nowhere"}) == str(tmp_path)
    with pytest.raises(ConfigurationError, match=r"Invalid temp directory: /nowhere, please check"):
        find_temp_dir({"TEMP": "/nowhere"})


def test_home_holds_the_package_ts(tmp_path):
    assert find_home({"TS_MODEL_SERVER_HOME": str(tmp_path)}) == str(tmp_path)
    assert find_home({})
