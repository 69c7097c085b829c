"""What `--check-config` says of the archives that a start would load."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ts_frontend.archive.model_store import ModelStore
from ts_frontend.archive.unpack import ArchiveLimits
from ts_frontend.model_check import check_models

HANDLER = "raise SystemExit('a check runs no code')\n"
WHERE = "load_models in here:1"


def manifest(**model: Any) -> str:
    model = {"modelName": "m", "modelVersion": "1.0", "handler": "h.py", **model}
    model = {key: value for key, value in model.items() if value is not None}
    return json.dumps({"runtime": "python", "model": model})


def files(config: str | None = None, **model: Any) -> dict[str, str]:
    found = {"h.py": HANDLER}
    if config is not None:
        found["model-config.yaml"] = config
        model = {"configFile": "model-config.yaml", **model}
    return {**found, "MAR-INF/MANIFEST.json": manifest(**model)}


class Store:
    """A model store and a temporary folder, which every look has to leave as they are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "store"
        self.temp = root / "temp"
        self.path.mkdir()
        self.temp.mkdir()

    def mar(self, name: str, content: Mapping[str, str | bytes]) -> Path:
        with zipfile.ZipFile(self.path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for file_name, text in content.items():
                archive.writestr(file_name, text)
        return self.path / name

    def look(
        self,
        *wanted: str | tuple[str | None, str],
        default_handler: str = "",
        limits: ArchiveLimits | None = None,
    ) -> list[str]:
        """`level: text` of each problem. wanted: locations, or names with them."""
        before = content_below(self.root)
        store = ModelStore(str(self.path), str(self.temp), limits=limits)
        pairs = [each if isinstance(each, tuple) else (None, each) for each in wanted]
        problems = check_models(store, pairs, WHERE, default_handler)
        said = [f"{problem.level}: {problem.text}" for problem in problems]
        with contextlib.suppress(FileNotFoundError):
            (self.temp / "models").rmdir()  # raises if something was left in it
        assert content_below(self.root) == before
        return said


def content_below(root: Path) -> dict[str, object]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else path.lstat().st_mode
        for path in root.rglob("*")
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_good_archive_is_passed_over_in_silence(store: Store) -> None:
    store.mar("m.mar", files("batchSize: 4\nhandler: {own: 1}\n"))
    assert store.look("m.mar") == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            "minWorkers: 1\nbatchsize: 4\n",
            "error: m.mar: model-config.yaml:2: unknown key 'batchsize' is left to the handler;"
            " did you mean 'batchSize'?",
        ),
        (
            "\nmaxBatchDelay: soon\n",
            "error: m.mar: model-config.yaml:2: maxBatchDelay should be an integer >= 0"
            " (milliseconds), not 'soon' (str); ignored.",
        ),
        (
            "responseTimeout: 0\n",
            "error: m.mar: model-config.yaml:1: responseTimeout should be an integer >= 1"
            " (seconds), not 0 (int); ignored.",
        ),
        (
            "parallelType: tp\ntorchrun:\n  nproc-per-nod: 2\n",
            "error: m.mar: model-config.yaml:3: torchrun: unsupported parameter 'nproc-per-nod'"
            " (str); ignored. Did you mean nproc-per-node?",
        ),
        (
            "batchSize: 4\nminWorkers: 4\nmaxWorkers: 2\n",
            "error: m.mar: model-config.yaml: minWorkers 4 is above maxWorkers 2; neither is used.",
        ),
        (
            "warmup:\n  - file: gone.json\n",
            "error: m.mar: model-config.yaml: warmup[0]: there is no file gone.json in the archive",
        ),
        (
            "parallelLevel: 2\n",
            "warning: m.mar: model-config.yaml:1: parallelLevel has no effect without"
            " parallelType.",
        ),
        (
            "parallelType: tp\nparallelLevel: 4\ntorchrun: {nproc-per-node: 2}\n",
            "warning: m.mar: model-config.yaml:2: parallelLevel 4 gives way to torchrun's"
            " nproc-per-node 2, the number of processes that are started.",
        ),
    ],
)
def test_a_mistake_in_the_configuration(store: Store, config: str, said: str) -> None:
    store.mar("m.mar", files(config))
    assert store.look("m.mar") == [said]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("batchSize: [\n", "model-config.yaml: ignored, since it is no valid YAML"),
        ("- batchSize\n", "ignored, since it is not a map of keys to values."),
        ("a: &a [1]\nb: [" + "*a, " * 200 + "]\n", "more than 100 aliases"),
        ("#" * (300 << 10), "has more than 262144 bytes."),
        ("#" * (3 << 20), "has more than 262144 bytes."),
    ],
)
def test_a_configuration_that_is_ignored(store: Store, config: str, reason: str) -> None:
    store.mar("m.mar", files(config))
    (said,) = store.look("m.mar")
    assert said.startswith("error: m.mar: model-config.yaml")
    assert reason in said


def test_a_configuration_that_is_missing(store: Store) -> None:
    store.mar("m.mar", files(configFile="own.yaml"))
    assert store.look("m.mar") == [
        "error: m.mar: own.yaml: the manifest names this configuration file, but it is missing."
    ]


def test_a_tar_gz(store: Store) -> None:
    with tarfile.open(store.path / "m.tar.gz", "w:gz") as archive:
        for name, text in files("bathcSize: 4\n").items():
            entry = tarfile.TarInfo(f"m/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    (said,) = store.look("m.tar.gz")
    assert said.endswith("did you mean 'batchSize'?")


def test_a_directory(store: Store) -> None:
    for name, text in files("batchSize: x\n").items():
        path = store.path / "m" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (said,) = store.look("m")
    assert said.startswith("error: m: model-config.yaml:1: batchSize should be an integer")
    os.mkfifo(store.path / "m" / "pipe")
    (store.path / "m" / "model-config.yaml").unlink()
    os.rename(store.path / "m" / "pipe", store.path / "m" / "model-config.yaml")
    (said,) = store.look("m")
    assert said == ("error: m: model-config.yaml: ignored. model-config.yaml is not a plain file.")


def test_a_file_that_is_no_archive(store: Store) -> None:
    (store.path / "m.mar").write_text("something else")
    assert store.look("m.mar") == [
        f"error: m.mar: The file is no model archive: neither zip (.mar) nor tar.gz. ({WHERE})"
    ]


def test_a_name_that_leaves_the_archive(store: Store) -> None:
    store.mar("m.mar", {**files(), "../out": "x"})
    (said,) = store.look("m.mar")
    assert said.startswith("error: m.mar: Detected Zip Slip vulnerability: ../out")


def test_limits(store: Store) -> None:
    store.mar("m.mar", {**files(), "weights": b"\0" * (2 << 20)})
    assert store.look("m.mar") == []
    (said,) = store.look("m.mar", limits=ArchiveLimits(max_bytes=1 << 20))
    assert said == f"error: m.mar: The archive unpacks to more than 1048576 bytes. ({WHERE})"


def test_damage_in_weights_that_are_not_kept(store: Store) -> None:
    path = store.mar("m.mar", {"weights": os.urandom(3 << 20), **files()})
    content = bytearray(path.read_bytes())
    content[1 << 20] ^= 1
    path.write_bytes(content)
    (said,) = store.look("m.mar")
    assert "The archive is damaged: Bad CRC-32" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"h.py": HANDLER},
            "There is no MAR-INF/MANIFEST.json, and no default_service_handler stands in.",
        ),
        (
            files(handler=None),
            "The manifest names no handler, and no default_service_handler stands in.",
        ),
        (files(handler="gone.py:handle"), "The manifest's handler gone.py is not in the archive."),
        (
            files(serializedFile="w.pt"),
            "The manifest's serializedFile w.pt is not in the archive.",
        ),
        (
            {"MAR-INF/MANIFEST.json": "{"},
            f"MAR-INF/MANIFEST.json cannot be read: Input data was truncated. ({WHERE})",
        ),
    ],
)
def test_what_no_worker_could_load(store: Store, content: Mapping[str, str], said: str) -> None:
    store.mar("m.mar", content)
    assert store.look("m.mar") == [f"error: m.mar: {said}"]


def test_a_default_handler_stands_in(store: Store) -> None:
    store.mar("m.mar", {"h.py": HANDLER})
    store.mar("n.mar", files(handler=None, modelName="n"))
    assert store.look("m.mar", "n.mar", default_handler="h.py") == []


def test_what_a_default_handler_would_miss(store: Store) -> None:
    store.mar("m.mar", files(handler="image_classifier", serializedFile=None))
    (said,) = store.look("m.mar")
    assert said.startswith("warning: m.mar: image_classifier needs a model file")


def test_two_models_of_one_name_and_version(store: Store) -> None:
    store.mar("a.mar", files())
    store.mar("b.mar", files())
    assert store.look("a.mar", ("other", "b.mar")) == []
    assert store.look("a.mar", "b.mar") == [
        f"error: b.mar: Model version 1.0 is already registered for model m ({WHERE})"
    ]


def test_an_archive_is_read_once(store: Store) -> None:
    store.mar("m.mar", files("batchsize: 1\n"))
    assert len(store.look(("a", "m.mar"), ("b", "m.mar"))) == 1


def test_what_is_missing_or_elsewhere(store: Store) -> None:
    assert store.look("gone.mar", "https://h/m.mar", "file:///m.mar") == [
        f"warning: Model not found at: gone.mar ({WHERE})"
    ]


def test_a_name_is_shown_without_its_control_characters(store: Store) -> None:
    store.mar("m\x1b[2J.mar", files("batchsize: 1\n"))
    (said,) = store.look("m\x1b[2J.mar")
    assert said.isprintable()
