"""Make the virtual environment of one model: `python setup_model_venv.py FOLDER`.

The environment sees what the interpreter that makes it sees; packages installed into it win over
those. The server runs this for models with `useVenv: true`.
"""

from __future__ import annotations

import argparse
import os
import site
import sys
import sysconfig
import venv

INHERITED = "inherited-site-packages.pth"


def create_venv(venv_path: str) -> None:
    """A fresh environment with pip in the folder; what was there before is gone."""
    venv.create(venv_path, clear=True, with_pip=True, symlinks=os.name != "nt")


def inherit_site_packages(venv_path: str) -> None:
    """Have the environment import from this interpreter's package folders, after its own.

    Raises FileNotFoundError if there is no environment in the folder.
    """
    # An environment of an environment would otherwise only see the base interpreter.
    folders = dict.fromkeys(
        path
        for path in (*site.getsitepackages(), *sys.path)
        if os.path.isdir(path) and os.path.basename(path) in ("site-packages", "dist-packages")
    )
    variables = {"base": venv_path, "platbase": venv_path}
    target = sysconfig.get_path("purelib", "venv", vars=variables)
    # Lines of a .pth file that name folders are not read as .pth files of those folders are, so
    # editable installs are followed by `addsitedir`, which reads them.
    lines = [f"import site; site.addsitedir({folder!r})" for folder in folders]
    with open(os.path.join(target, INHERITED), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("venv_path", help="folder of the environment; emptied first")
    venv_path = parser.parse_args().venv_path
    create_venv(venv_path)
    inherit_site_packages(venv_path)


if __name__ == "__main__":
    main()
