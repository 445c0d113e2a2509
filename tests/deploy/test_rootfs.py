"""What makes the images' root file systems: deploy/docker/rootfs.py and strip.py, on small ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.deploy.images import ROOT


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / "docker" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="ldd is Linux's")
def test_a_program_comes_with_the_libraries_that_it_links(tmp_path: Path) -> None:
    program = Path("/bin/cat")
    script("rootfs").main(tmp_path / "root", [program])
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    linked = [word for word in said.split() if word.startswith("/")]
    assert len(linked) >= 2  # the C library and the loader
    for name in linked:
        assert (tmp_path / "root" / name.lstrip("/")).resolve().is_file(), name
    assert not (tmp_path / "root" / "bin" / "sh").exists()
    users = (tmp_path / "root" / "etc" / "passwd").read_text().splitlines()
    assert {line.split(":")[-1] for line in users} == {"/nowhere"}
    assert (tmp_path / "root" / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (tmp_path / "root" / "bundle").is_dir()


@pytest.mark.skipif(sys.platform != "linux", reason="ldd is Linux's")
def test_a_library_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rootfs = script("rootfs")
    said = subprocess.CompletedProcess([], 0, stdout="\tlibgone.so.1 => not found\n")
    monkeypatch.setattr(rootfs.subprocess, "run", lambda *args, **how: said)
    with pytest.raises(SystemExit, match=r"links libgone\.so\.1, which is not here"):
        rootfs.main(tmp_path, [Path(sys.executable).resolve()])


KEPT = (
    "usr/bin/python3", "usr/bin/python3.12", "usr/lib/python3/dist-packages/yaml/__init__.py",
    "opt/tritonserver/bin/tritonserver", "opt/tritonserver/backends/tensorrt/lib.so",
    "opt/tritonserver/backends/onnxruntime/lib.so", "usr/local/cuda-13.0/lib64/libcudart.so",
    "usr/lib/x86_64-linux-gnu/libnvinfer.so.10", "plugins/libsparta_trt.so", "etc/passwd",
)  # fmt: skip
GONE = (
    "usr/bin/bash", "usr/bin/g++", "usr/bin/apt", "usr/bin/python3-config", "usr/sbin/ldconfig",
    "usr/local/bin/pip", "usr/include/NvInfer.h", "usr/local/cuda-13.0/bin/nvcc",
    "usr/local/cuda-13.0/nvvm/bin/cicc", "usr/local/cuda-13.0/targets/x86_64-linux/include/cuda.h",
    "usr/lib/gcc/x86_64-linux-gnu/13/cc1", "usr/libexec/gcc/cc1plus", "var/lib/dpkg/status",
    "usr/lib/python3/dist-packages/pip/__init__.py", "opt/tritonserver/backends/python/stub",
    "usr/local/lib/python3.12/dist-packages/setuptools/__init__.py", "opt/nvidia/nvidia_entrypoint.sh",
)  # fmt: skip


def test_shells_compilers_and_headers_go_and_the_server_stays(tmp_path: Path) -> None:
    for name in (*KEPT, *GONE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "usr/bin/sh").symlink_to("bash")
    (tmp_path / "usr/local/cuda").symlink_to("cuda-13.0")
    script("strip").strip(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(KEPT)
    assert not (tmp_path / "usr/bin/sh").is_symlink()
    assert (tmp_path / "bin").is_symlink()
