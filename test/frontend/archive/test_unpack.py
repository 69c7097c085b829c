"""Hostile and broken archives: each is refused in words, and leaves nothing."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_frontend.archive import unpack as unpack_module
from ts_frontend.archive.model_store import ModelStore
from ts_frontend.archive.unpack import ArchiveLimits, Entry, check_entries, unpack
from ts_frontend.core.errors import ArchiveStorageFailed, InvalidModel, ServingError

Build = Callable[..., bytes]
SMALL = ArchiveLimits(max_entries=100, max_bytes=1 << 20, max_ratio=20, ratio_free_bytes=10_000)


def _not_cancelled() -> None:
    pass


def _tree(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
    }


async def _refused(places, content: bytes, *reasons: str, name: str = "bad.mar") -> None:
    """Neither from the store nor as a download does `content` leave more than its refusal."""
    (places.store / name).write_bytes(content)
    store: ModelStore = places.model_store(limits=SMALL)
    before = places.snapshot()
    with pytest.raises(InvalidModel) as refused:
        await store.open(name)
    assert any(reason in str(refused.value) for reason in reasons), str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500
    assert places.snapshot() == before

    outside = places.root / name
    (places.store / name).rename(outside)
    before = places.snapshot()
    with pytest.raises(InvalidModel):
        await store.open(f"file://{outside}")
    assert places.snapshot() == before
    assert sorted(path.name for path in places.root.iterdir()) == sorted(["store", "temp", name])


# --- what is unpacked -----------------------------------------------------------------------------


def test_mar(tmp_path: Path, mar: Build) -> None:
    content = {"echo.py": b"x" * 1000, "./dir//b.txt": b"b", "empty/": b"", "MAR-INF/M": b"{}"}
    (tmp_path / "a.mar").write_bytes(mar(content))
    unpack(str(tmp_path / "a.mar"), str(tmp_path / "out"), SMALL, _not_cancelled)
    assert _tree(tmp_path / "out") == {
        "echo.py": b"x" * 1000,
        "dir": None,
        "dir/b.txt": b"b",
        "empty": None,
        "MAR-INF": None,
        "MAR-INF/M": b"{}",
    }
    mode = stat.S_IMODE((tmp_path / "out" / "echo.py").stat().st_mode)
    assert mode & ~0o644 == 0


def test_large_files_become_holes_where_only_the_small_ones_are_wanted(
    tmp_path: Path, mar: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mar").write_bytes(mar({"small": b"x" * 10, "large": b"y" * (1 << 20)}))
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    target = tmp_path / "out"
    unpack(str(tmp_path / "a.mar"), str(target), ArchiveLimits(), _not_cancelled, kept_bytes=10)
    assert _tree(target) == {"small": b"x" * 10, "large": b"\0" * (1 << 20)}
    assert (target / "large").stat().st_blocks == 0


def test_tar_gz_loses_its_first_folder(tmp_path: Path, tgz: Build) -> None:
    folder = tarfile.TarInfo("echo")
    folder.type = tarfile.DIRTYPE
    content = {folder: b"", "echo/echo.py": b"x" * 1000, "echo/dir/b.txt": b"b", "flat.txt": b"f"}
    (tmp_path / "a.tar.gz").write_bytes(tgz(content))
    unpack(str(tmp_path / "a.tar.gz"), str(tmp_path / "out"), SMALL, _not_cancelled)
    assert _tree(tmp_path / "out") == {
        "echo.py": b"x" * 1000,
        "dir": None,
        "dir/b.txt": b"b",
        "flat.txt": b"f",
    }


def test_tar_made_with_a_dot(tmp_path: Path, tgz: Build) -> None:
    """`tar czf a.tar.gz -C directory .` is how people make them by hand."""
    (tmp_path / "a").write_bytes(tgz({"./echo.py": b"x", "./MAR-INF/MANIFEST.json": b"{}"}))
    unpack(str(tmp_path / "a"), str(tmp_path / "out"), SMALL, _not_cancelled)
    assert set(_tree(tmp_path / "out")) == {"echo.py", "MAR-INF", "MAR-INF/MANIFEST.json"}


def test_kind_is_known_by_content(tmp_path: Path, mar: Build, tgz: Build) -> None:
    (tmp_path / "zip.tar.gz").write_bytes(mar({"a": b"1"}))
    (tmp_path / "tar.mar").write_bytes(tgz({"m/a": b"1"}))
    for name in ("zip.tar.gz", "tar.mar"):
        unpack(str(tmp_path / name), str(tmp_path / f"{name}.out"), SMALL, _not_cancelled)
        assert _tree(tmp_path / f"{name}.out") == {"a": b"1"}


def test_set_uid_bits_do_not_survive(tmp_path: Path, tgz: Build) -> None:
    entry = tarfile.TarInfo("m/tool")
    entry.mode = 0o6777
    (tmp_path / "a").write_bytes(tgz({entry: b"x"}))
    unpack(str(tmp_path / "a"), str(tmp_path / "out"), SMALL, _not_cancelled)
    assert (tmp_path / "out" / "tool").stat().st_mode & 0o7133 == 0


# --- names ----------------------------------------------------------------------------------------

SLIPS = [
    "../slip",
    "a/../../slip",
    "..",
    "a/..",
    "/slip",
    "//slip",
    "C:/slip",
    "c:slip",
    "..\\slip",
    "a\\b",
]
BAD_NAMES = ["a\nb", "a\x1b[31mb", "a" * 300, "/".join("a" * 100), "d/" * 600 + "x"]


@pytest.mark.parametrize("name", SLIPS)
async def test_cve_2023_48299_name_that_leaves(places, mar: Build, tgz: Build, name: str) -> None:
    await _refused(places, mar({"ok": b"1", name: b"2"}), "Detected Zip Slip vulnerability")
    await _refused(places, tgz({"m/ok": b"1", name: b"2"}), "Detected Zip Slip vulnerability")
    await _refused(places, tgz({"m/" + name: b"2"}), "Detected Zip Slip vulnerability")


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_unusable_name(places, mar: Build, tgz: Build, name: str) -> None:
    await _refused(places, mar({name: b"2"}), "unusable name", "too long a name")
    await _refused(places, tgz({"m/" + name: b"2"}), "unusable name", "too long a name")


async def test_nul_in_a_name(places, mar: Build) -> None:
    content = mar({"good.pyX.txt": b"1"}).replace(b"good.pyX.txt", b"good.py\0.txt")
    await _refused(places, content, "unusable name")


async def test_name_not_in_utf8(places, tgz: Build) -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w:gz", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as archive:
        archive.addfile(tarfile.TarInfo("m/ä"))
    await _refused(places, buffer.getvalue(), "not in UTF-8")


@pytest.mark.parametrize(
    "names",
    [
        ("README", "readme"),
        ("dir/a", "DIR/b"),
        ("a/b", "a"),
        ("a", "a/b"),
        ("a", "a"),
        ("a", "./a"),
        ("straße", "STRASSE"),
        ("\u00e9", "e\u0301"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
async def test_names_in_each_others_way(places, mar: Build, tgz: Build, names) -> None:
    one, two = (zipfile.ZipInfo(name) for name in names)
    await _refused(places, mar({one: b"1", two: b"2"}), "stand for one file")
    one_tar, two_tar = (tarfile.TarInfo(f"m/{name}") for name in names)
    await _refused(places, tgz({one_tar: b"1", two_tar: b"2"}), "stand for one file")


def test_directories_may_come_again() -> None:
    entries = [Entry("d", True, 0, None), Entry("d/a", False, 1, None), Entry("d", True, 0, None)]
    assert check_entries(entries, 100, SMALL) == entries


# --- kinds of entries -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"Z",
    ],
)
async def test_tar_entry_that_is_no_file(places, tgz: Build, kind: bytes) -> None:
    entry = tarfile.TarInfo("m/link")
    entry.type = kind
    entry.linkname = "m/ok"
    content = tgz({"m/ok": b"1", entry: b""})
    if kind == tarfile.CONTTYPE:  # an old name for a plain file
        (places.store / "a").write_bytes(content)
        await places.model_store().open("a")
    else:
        await _refused(places, content, "neither a plain file nor a directory", "is damaged")


async def test_link_out_and_a_file_through_it(places, tgz: Build) -> None:
    link = tarfile.TarInfo("m/dir")
    link.type = tarfile.SYMTYPE
    link.linkname = str(places.root)
    await _refused(places, tgz({link: b"", "m/dir/slip": b"2"}), "neither a plain file")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
async def test_zip_entry_that_is_no_file(places, mar: Build, kind: int) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (kind | 0o777) << 16
    await _refused(places, mar({entry: b"/etc/passwd"}), "neither a file nor a directory")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_other_compression(places, mar: Build, method: int) -> None:
    await _refused(places, mar({"a": b"1" * 100}, method), "uses compression method")


async def test_encrypted(places, mar: Build) -> None:
    content = bytearray(mar({"a": b"1" * 100}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    await _refused(places, bytes(content), "is encrypted")


async def test_directory_with_content(places, mar: Build) -> None:
    content = mar({"dirX": b"1" * 100}).replace(b"dirX", b"dir/")
    await _refused(places, content, "has content")


# --- sizes ----------------------------------------------------------------------------------------


async def test_bomb_by_ratio(places, mar: Build, tgz: Build) -> None:
    zeros = bytes(900_000)
    await _refused(places, mar({"zeros": zeros}), "more than 20 times its size")
    await _refused(places, tgz({"m/zeros": zeros}), "more than 20 times its size")


def test_small_archive_of_zeros_is_no_bomb(tmp_path: Path, mar: Build) -> None:
    (tmp_path / "a").write_bytes(mar({"zeros": bytes(900_000)}))
    unpack(str(tmp_path / "a"), str(tmp_path / "out"), ArchiveLimits(), _not_cancelled)


async def test_too_large(places, mar: Build, tgz: Build) -> None:
    noise = random.Random(1).randbytes(600_000)
    await _refused(places, mar({"a": noise, "b": noise}), "more than 1048576 bytes")
    await _refused(places, tgz({"m/a": noise, "m/b": noise}), "more than 1048576 bytes")


async def test_many_entries(places, mar: Build, tgz: Build) -> None:
    names = {f"m/{i}": b"" for i in range(SMALL.max_entries + 1)}
    await _refused(places, mar(names), "more than 100 entries")
    await _refused(places, tgz(names), "more than 100 entries")


def test_a_hundred_thousand_entries_cost_nothing(
    tmp_path: Path, mar: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default limit stops a forged directory before zipfile makes objects of it."""
    content = mar({"a": b""})
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    directory = content[start:end] * 100_000
    trailer = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), start, 0)
    (tmp_path / "a").write_bytes(content[:start] + directory + trailer)
    monkeypatch.delattr(unpack_module.zipfile, "ZipFile")
    with pytest.raises(InvalidModel, match="more than 50000 entries"):
        unpack(str(tmp_path / "a"), str(tmp_path / "out"), ArchiveLimits(), _not_cancelled)


def test_zip64_directory_is_counted(tmp_path: Path, mar: Build) -> None:
    content = mar({"a": b""})
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    directory = content[start:end] * 200
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 200, 200, len(directory), start
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(directory), 1)
    trailer = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "a").write_bytes(content[:start] + directory + record + locator + trailer)
    with pytest.raises(InvalidModel, match="more than 100 entries"):
        unpack(str(tmp_path / "a"), str(tmp_path / "out"), SMALL, _not_cancelled)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("declared", [0, 10, 999, 1001, 5000])
async def test_lying_size(places, mar: Build, method: int, declared: int) -> None:
    content = bytearray(mar({"a.txt": bytes(range(250)) * 4}, method))
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        struct.pack_into("<L", content, content.index(signature) + offset, declared)
    await _refused(places, bytes(content), "lies about its size", "is damaged")


def test_extended_tar_header_of_unlikely_size(tmp_path: Path) -> None:
    """tarfile would read what the header declares into memory at once."""
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    header.size = (1 << 33) - 1
    (tmp_path / "a").write_bytes(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)))
    with pytest.raises(InvalidModel, match="unlikely size"):
        unpack(str(tmp_path / "a"), str(tmp_path / "out"), SMALL, _not_cancelled)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_negative_tar_size(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("x/y")
    header.type = kind
    raw = bytearray(header.tobuf())
    raw[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512, in base 256
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / "a").write_bytes(gzip.compress(bytes(raw) + bytes(1024)))
    with pytest.raises(InvalidModel):
        unpack(str(tmp_path / "a"), str(tmp_path / "out"), SMALL, _not_cancelled)


def test_full_disk(tmp_path: Path, mar: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(mar({"a": b"1" * 1000}))
    monkeypatch.setattr(unpack_module.shutil, "disk_usage", lambda path: _Disk(999))
    with pytest.raises(ArchiveStorageFailed, match="needs 1000 bytes of disk, 999 are free"):
        unpack(str(tmp_path / "a"), str(tmp_path / "out"), SMALL, _not_cancelled)
    assert not (tmp_path / "out").exists()


class _Disk:
    def __init__(self, free: int) -> None:
        self.free = free


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x", b"PK", b"not an archive at all", bytes(1000)])
async def test_no_archive(places, content: bytes) -> None:
    await _refused(places, content, "neither zip (.mar) nor tar.gz", "is an empty file")


async def test_tar_without_gz_and_gz_without_tar(places, tgz: Build) -> None:
    plain = gzip.decompress(tgz({"m/a": b"1"}))
    await _refused(places, plain, "neither zip (.mar) nor tar.gz", name="a.tar.gz")
    await _refused(places, gzip.compress(b"text, no tar" * 100), "is damaged", name="a.tar.gz")
    await _refused(places, gzip.compress(b""), "is damaged", name="a.tar.gz")


@pytest.mark.parametrize("eighth", range(8))
async def test_cut_short(places, mar: Build, tgz: Build, eighth: int) -> None:
    files = {"m/a.txt": random.Random(1).randbytes(3000), "m/b.txt": b"b" * 3000}
    for content in (mar(files), tgz(files)):
        cut = content[: len(content) * eighth // 8]
        await _refused(places, cut, "damaged", "empty file", "neither zip")


async def test_broken_header_inside_a_tar(places, tgz: Build) -> None:
    """tarfile takes it for the end of the archive; half a model would be served."""
    content = bytearray(gzip.decompress(tgz({"m/a": b"1", "m/b": b"2"})))
    content[1024 + 150] ^= 0xFF
    await _refused(places, gzip.compress(bytes(content)), "a header inside it is broken")


async def test_wrong_checksum(places, mar: Build, tgz: Build) -> None:
    content = bytearray(mar({"a": b"1" * 100}, zipfile.ZIP_STORED))
    content[40] ^= 1
    await _refused(places, bytes(content), "is damaged")
    content = bytearray(tgz({"m/a": b"1" * 100}))
    content[-6] ^= 1
    await _refused(places, bytes(content), "is damaged")


_FILES = {"m/h.py": b"def handle(data, context): ...\n" * 9, "m/MAR-INF/MANIFEST.json": b"{}"}


@pytest.mark.parametrize("kind", ["mar", "mar, stored", "tgz", "tar"])
@settings(max_examples=150, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 40),
)
def test_random_damage(kind: str, mar: Build, tgz: Build, flips, cut: int) -> None:
    """Whatever bytes change: the archive unpacks, or is refused as one, and nothing stays then."""
    if kind.startswith("mar"):
        content = bytearray(mar(_FILES, zipfile.ZIP_STORED if "stored" in kind else 8))
    else:
        content = bytearray(tgz(_FILES))
        if kind == "tar":  # damage below the compression, which hides nothing then
            content = bytearray(gzip.decompress(bytes(content))[:2560])
    for position, mask in flips:
        content[position % len(content)] ^= mask
    damaged = bytes(content[: len(content) - cut])
    with tempfile.TemporaryDirectory() as directory:
        source, target = os.path.join(directory, "a"), os.path.join(directory, "out")
        with open(source, "wb") as file:
            file.write(gzip.compress(damaged) if kind == "tar" else damaged)
        try:
            unpack(source, target, SMALL, _not_cancelled)
        except ServingError:
            assert os.listdir(directory) == ["a"]
        else:
            assert sorted(os.listdir(directory)) == ["a", "out"]


def test_cancelled_in_the_middle(tmp_path: Path, mar: Build) -> None:
    (tmp_path / "a").write_bytes(mar({f"f{i}": b"1" * 100 for i in range(20)}))
    calls = iter(range(1000))

    def check() -> None:
        if next(calls) == 30:  # 20 for the table of contents, then one for each file
            assert (tmp_path / "out" / "f0").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(str(tmp_path / "a"), str(tmp_path / "out"), SMALL, check)
    assert not (tmp_path / "out").exists()
