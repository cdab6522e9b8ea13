"""A zipped package equals the package in its folder, and a hostile zip is refused before any of it
is written to disk.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference import container, package, package_files
from inference.package import PackageError


@pytest.fixture
def zipped(tiny_package: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in sorted(tiny_package.iterdir()):
            archive.write(one, one.name)
    return path


def append(
    path: Path, name: str | zipfile.ZipInfo, data: bytes = b"x", method: int = zipfile.ZIP_DEFLATED
) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, data, method)


def patch(path: Path, old: bytes, new: bytes, number: int) -> None:
    """Replace `old` by `new` of equal length, at exactly `number` places."""
    data = path.read_bytes()
    assert data.count(old) == number
    path.write_bytes(data.replace(old, new))


def test_a_zip_loads_as_the_same_package_as_its_folder(
    tiny_package: Path, zipped: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    folder, archive = package.load(tiny_package), package.load(zipped)
    assert archive.identity == folder.identity
    assert archive.manifest == folder.manifest == package.read_manifest(zipped)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_made_by_another_tool_loads(tiny_package: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "made"), "zip", tiny_package)
    assert package.load(tmp_path / "made.zip").identity.id == "tiny"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py", "../../../../tmp/evil", "/etc/cron.d/evil", "tiny/model.yaml", "a\\..\\evil", "C:evil", "..", ".",
        "tiny/", "evil\x00.txt", "evil\n", "\u202egnp.exe",
    ],
)  # fmt: skip
def test_a_name_that_leaves_the_package_is_refused(zipped: Path, name: str) -> None:
    # zipfile itself truncates such a name, in writing and in reading.
    if "\x00" in name:
        append(zipped, name.replace("\x00", "N"))
        patch(zipped, b"evilN", b"evil\x00", 2)
    else:
        append(zipped, name)
    with pytest.raises(PackageError, match="is not a plain file name"):
        package.load(zipped)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO])
def test_links_folders_and_devices_are_refused(zipped: Path, kind: int) -> None:
    member = zipfile.ZipInfo("README.md")
    member.external_attr = (kind | 0o777) << 16
    append(zipped, member, b"/etc/passwd")
    with pytest.raises(PackageError, match="a folder, a link or a device"):
        package.load(zipped)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["model.yaml", "MODEL.yaml"])
def test_a_duplicate_name_is_refused(zipped: Path, name: str) -> None:
    append(zipped, name)
    with pytest.raises(PackageError, match="two files share a name"):
        package.load(zipped)


def test_a_file_that_is_not_listed_is_refused(zipped: Path) -> None:
    append(zipped, "weights.pkl")
    with pytest.raises(PackageError, match=r"weights\.pkl: not listed"):
        package.load(zipped)


def test_too_many_files_are_refused(zipped: Path) -> None:
    with zipfile.ZipFile(zipped, "a") as archive:
        for number in range(container.MAX_FILES):
            archive.writestr(f"{number}.md", b"")
    with pytest.raises(PackageError, match="files found, at most"):
        package.load(zipped)


def test_a_zip_bomb_with_its_true_size_is_refused(zipped: Path) -> None:
    append(zipped, "README.md", bytes(50_000_000))
    with pytest.raises(PackageError, match="packed bytes say to be 50000000"):
        package.load(zipped)


def test_a_zip_bomb_with_a_false_size_is_not_unpacked(tiny_package: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    size = 50_000_000
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.yaml", bytes(size))
        for name in ("weights.safetensors", "golden.safetensors"):
            archive.write(tiny_package / name, name)
    # Change the local and the central header.
    patch(bomb, size.to_bytes(4, "little"), (1000).to_bytes(4, "little"), 2)
    with pytest.raises(PackageError, match=r"model\.yaml: cannot be unpacked"):
        package.load(bomb)


def test_a_file_above_its_size_limit_is_refused(
    zipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_files, "MAX_FILE_BYTES", 1000)
    with pytest.raises(PackageError, match="bytes found, at most 1000 allowed"):
        package.load(zipped)


def test_an_encrypted_file_is_refused(zipped: Path) -> None:
    data = bytearray(zipped.read_bytes())
    # Set the encryption flag in both headers (APPNOTE 4.3.7 and 4.3.12).
    for signature, offset in (
        (b"PK\x03\x04", 6),
        (b"PK\x01\x02", 8),
    ):
        data[data.index(signature) + offset] |= 1
    zipped.write_bytes(data)
    with pytest.raises(PackageError, match="encrypted; pack it without a password"):
        package.load(zipped)


def test_other_compression_methods_are_refused(zipped: Path) -> None:
    append(zipped, "README.md", b"hello", zipfile.ZIP_LZMA)
    with pytest.raises(PackageError, match="compression method 14"):
        package.load(zipped)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"hello" * 100, b"PK\x05\x06" + b"\xff" * 18])
def test_a_file_that_is_not_a_zip_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "no.zip").write_bytes(data)
    with pytest.raises(PackageError, match=r"no\.zip: not a zip"):
        package.load(tmp_path / "no.zip")


def test_a_missing_or_incomplete_package_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="No such file or directory; give the folder or the zip"):
        package.load(tmp_path / "none")
    with pytest.raises(PackageError, match="neither a folder nor a file"):
        package.load(Path("/dev/zero"))
    for path in (tmp_path / "empty", tmp_path / "empty.zip"):
        if path.suffix:
            zipfile.ZipFile(path, "w").close()
        else:
            path.mkdir()
        with pytest.raises(PackageError, match=r"model\.yaml.*the package is incomplete"):
            package.load(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_zip_is_refused_or_loads_as_the_same_package(
    zipped: Path, data: st.DataObject
) -> None:
    whole = zipped.read_bytes()
    damaged = bytearray(whole)
    directory = whole.index(b"PK\x01\x02")

    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(
            st.one_of(st.integers(0, len(whole) - 1), st.integers(directory, len(whole) - 1))
        )
        damaged[place] = data.draw(st.integers(0, 255))

    path = zipped.parent / "damaged.zip"
    path.write_bytes(damaged)
    try:
        found = package.read_manifest(path)
    except PackageError as error:
        assert "damaged.zip" in str(error)  # noqa: PT017 - both ends are right
    else:
        assert found == package.read_manifest(zipped)
