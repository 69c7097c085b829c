import os
import subprocess
import sys
from pathlib import Path

import pytest

from ts.utils import setup_model_venv
from ts.utils.setup_model_venv import inherit_site_packages

SCRIPT = Path(setup_model_venv.__file__)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A model's environment, made by the script over a folder with old contents."""
    folder = tmp_path_factory.mktemp("model") / "venv"
    folder.mkdir()
    (folder / "old").touch()
    subprocess.run([sys.executable, SCRIPT, folder], check=True, timeout=100, cwd="/")
    return folder


def run(environment, code):
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [environment / "bin" / "python", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd="/",
        env=inherited,
    )
    return result.stdout.strip()


@pytest.mark.slow
def test_it_sees_the_packages_of_the_interpreter_that_made_it(environment):
    import yaml

    assert run(environment, "import yaml; print(yaml.__file__)") == yaml.__file__
    assert run(environment, "import sys; print(sys.prefix)") == str(environment)
    assert not (environment / "old").exists()


@pytest.mark.slow
def test_its_own_packages_win(environment):
    own = run(environment, "import sysconfig; print(sysconfig.get_path('purelib'))")
    (Path(own) / "yaml.py").write_text("mark = 'own'\n")
    assert run(environment, "import yaml; print(yaml.mark)") == "own"


def test_the_script_wants_exactly_a_folder(tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 2
    assert "venv_path" in result.stderr


def test_inheriting_needs_an_environment(tmp_path):
    with pytest.raises(FileNotFoundError):
        inherit_site_packages(str(tmp_path / "none"))
