"""Fill a model directory for trying a handler without a server."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib import request
from urllib.parse import urlparse

REPO_DIR = Path(__file__).resolve().parents[4]


def download_model(model_url: str, model_dir: Path) -> None:
    """Download a file into the directory under its own name, unless it is there.

    The file appears under that name only when it is complete.
    """
    url = urlparse(model_url)
    if url.scheme not in ("http", "https", "file"):
        raise ValueError(f"cannot download {model_url!r}: use http, https or file")
    destination = Path(model_dir, Path(url.path).name)
    if destination.exists():
        return
    partial = destination.with_name(destination.name + ".part")
    try:
        request.urlretrieve(model_url, partial)  # noqa: S310 scheme checked above
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


def copy_files(src_dir: Path, dst_dir: Path, files: Mapping[str, str]) -> None:
    """Copy files into `dst_dir`; `files` maps names in `src_dir` to names there."""
    for source, destination in files.items():
        shutil.copy(Path(src_dir, source), Path(dst_dir, destination))
