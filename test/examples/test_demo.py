"""scripts/demo.py against a real server: the must-show job, and that nothing is left of it."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parent.parent.parent / "scripts" / "demo.py"


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    if not Path(sys.executable).with_name("torchserve").exists():
        pytest.skip("the torchserve command is not installed beside this Python")
    result = subprocess.run(
        [sys.executable, DEMO, "--output", tmp_path],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "right: 39 of 40" in result.stdout
    assert "processes left: none; ports left open: none" in result.stdout
    assert (tmp_path / "explanations.png").exists()
