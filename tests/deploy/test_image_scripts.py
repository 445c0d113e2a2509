"""deploy/docker/rootfs.py and strip.py on small root file systems."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.deploy.image_tools import ROOT


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / "docker" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="not run: needs ldd (Linux)")
def test_rootfs_copies_linked_libraries(tmp_path: Path) -> None:
    program = Path("/bin/cat")
    load_script("rootfs").main(tmp_path / "root", [program])
    output = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    linked = [word for word in output.split() if word.startswith("/")]
    assert len(linked) >= 2  # the C library and the loader
    for name in linked:
        assert (tmp_path / "root" / name.lstrip("/")).resolve().is_file(), name
    assert not (tmp_path / "root" / "bin" / "sh").exists()
    users = (tmp_path / "root" / "etc" / "passwd").read_text().splitlines()
    assert {line.split(":")[-1] for line in users} == {"/nowhere"}
    assert (tmp_path / "root" / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (tmp_path / "root" / "bundle").is_dir()


@pytest.mark.skipif(sys.platform != "linux", reason="not run: needs ldd (Linux)")
def test_rootfs_missing_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rootfs = load_script("rootfs")
    output = subprocess.CompletedProcess([], 0, stdout="\tlibgone.so.1 => not found\n")
    monkeypatch.setattr(rootfs.subprocess, "run", lambda *args, **options: output)
    with pytest.raises(SystemExit, match=r"links libgone\.so\.1, which this machine lacks"):
        rootfs.main(tmp_path, [Path(sys.executable).resolve()])


KEPT = (
    "usr/bin/python3", "usr/bin/python3.12", "usr/lib/python3/dist-packages/yaml/__init__.py",
    "opt/tritonserver/bin/tritonserver", "opt/tritonserver/backends/tensorrt/lib.so",
    "opt/tritonserver/backends/onnxruntime/lib.so", "usr/local/cuda-13.0/lib64/libcudart.so",
    "usr/lib/x86_64-linux-gnu/libnvinfer.so.10", "plugins/libsparta_trt.so", "etc/passwd",
)  # fmt: skip
REMOVED = (
    "usr/bin/bash", "usr/bin/g++", "usr/bin/apt", "usr/bin/python3-config", "usr/sbin/ldconfig",
    "usr/local/bin/pip", "usr/include/NvInfer.h", "usr/local/cuda-13.0/bin/nvcc",
    "usr/local/cuda-13.0/nvvm/bin/cicc", "usr/local/cuda-13.0/targets/x86_64-linux/include/cuda.h",
    "usr/lib/gcc/x86_64-linux-gnu/13/cc1", "usr/libexec/gcc/cc1plus", "var/lib/dpkg/status",
    "usr/lib/python3/dist-packages/pip/__init__.py", "opt/tritonserver/backends/python/stub",
    "usr/local/lib/python3.12/dist-packages/setuptools/__init__.py", "opt/nvidia/nvidia_entrypoint.sh",
)  # fmt: skip


def test_strip_removes_shells_compilers_and_headers(tmp_path: Path) -> None:
    for name in (*KEPT, *REMOVED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "usr/bin/sh").symlink_to("bash")
    (tmp_path / "usr/local/cuda").symlink_to("cuda-13.0")
    load_script("strip").strip(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(KEPT)
    assert not (tmp_path / "usr/bin/sh").is_symlink()
    assert (tmp_path / "bin").is_symlink()
