"""Finding and downloading ONNX Runtime's C++ headers."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from robust_export.errors import BuildError
from robust_export.kernels.headers.onnxruntime import find_ort_headers
from tests.kernels.stand_ins import run

MODULE = "robust_export.kernels.headers.onnxruntime"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the system's headers and Debian's key, and set the address of the release archive to a file."""
    path = tmp_path / "onnxruntime.tgz"
    monkeypatch.delenv("ONNXRUNTIME_INCLUDE_DIR", raising=False)
    monkeypatch.setattr(f"{MODULE}.SYSTEM", ())
    monkeypatch.setattr(f"{MODULE}.KEYRING", str(tmp_path / "none.gpg"))
    monkeypatch.setattr(f"{MODULE}.ARCHIVE", path.as_uri())
    return path


def test_wrong_include_dir(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE_DIR", str(tmp_path))
    result = run("plugins", "build")
    assert result.exit_code == 1
    assert f"ONNXRUNTIME_INCLUDE_DIR is {tmp_path}" in result.stderr


def test_error_lists_every_source(empty_cache: Path, archive: Path) -> None:
    result = run("plugins", "build")
    assert result.exit_code == 1
    for word in ("onnxruntime_cxx_api.h", "none.gpg", "release 1.21.0", "ONNXRUNTIME_INCLUDE_DIR"):
        assert word in result.stderr
    assert len(result.stderr.splitlines()) < 20


def test_release_archive(archive: Path, tmp_path: Path) -> None:
    api = tmp_path / "api"
    api.mkdir()
    (api / "onnxruntime_cxx_api.h").touch()
    (api / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 21\n" + "// a comment\n" * 1000)
    with tarfile.open(archive, "w:gz") as file:
        for header in api.iterdir():
            file.add(header, f"onnxruntime-linux-x64-1.21.0/include/{header.name}")
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])  # an interrupted download
    with pytest.raises(BuildError, match=r"release 1\.21\.0: "):
        find_ort_headers(tmp_path / "cache")
    archive.write_bytes(content)
    headers = find_ort_headers(tmp_path / "cache")
    assert (headers.path / "onnxruntime_cxx_api.h").is_file()
    archive.unlink()
    assert find_ort_headers(tmp_path / "cache") == headers  # from the cache


def test_old_headers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime_cxx_api.h").touch()
    (tmp_path / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 17\n")
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(BuildError, match="18 or later"):
        find_ort_headers(tmp_path / "cache")
