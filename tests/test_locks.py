"""The locks fit what pyproject.toml asks for, and hold what they should."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINUX: dict[str, str] = {"python_version": "3.11", "python_full_version": "3.11.2", "sys_platform": "linux",
         "platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}  # fmt: skip
LOCKS = {"serve": "serve", "export": "train"}  # the extra of each
INSTEAD = {"serve": {"onnxruntime-gpu": "onnxruntime"}}  # requirements/serve.overrides


def locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """Return what a lock installs in the images, with the number of its hashes."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    found: dict[str, tuple[Requirement, int]] = {}
    for line, hashes in re.findall(
        r"^(\w[^\\\n]*?) \\\n((?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n)+)", text, re.M
    ):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(LINUX):
            found[canonicalize_name(requirement.name)] = (requirement, hashes.count("--hash"))
    return found


@pytest.mark.parametrize("name", ["build", "export", "serve", "tools"])
def test_every_package_is_pinned_and_has_hashes(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    packages = re.findall(r"^\w\S*", text, re.MULTILINE)
    assert packages
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", package) for package in packages), packages
    assert len(packages) == len(re.findall(r"^\w.* \\\n    --hash=", text, re.MULTILINE))
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)


@pytest.mark.parametrize("name", LOCKS)
def test_what_the_project_asks_for_is_locked(name: str) -> None:
    lock = locked(name)
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][LOCKS[name]]]
    for requirement in map(Requirement, asked):
        if requirement.marker and not requirement.marker.evaluate(LINUX):
            continue
        package = INSTEAD.get(name, {}).get(requirement.name, requirement.name)
        assert package in lock, f"{package}: run `make lock`"
        [pin] = lock[package][0].specifier
        assert requirement.specifier.contains(pin.version), f"{package} {pin.version}: run `make lock`"
        assert lock[package][1] > 0


def test_the_image_that_serves_has_no_torch_and_one_onnx_runtime() -> None:
    names = set(locked("serve"))
    assert "onnxruntime" in names
    assert not names & {"torch", "torchvision", "timm", "onnxruntime-gpu", "scipy"}
    assert not [name for name in names if name.startswith("nvidia-")]


def test_a_lock_that_is_old_would_be_seen() -> None:
    lock = locked("serve")
    [pin] = lock["numpy"][0].specifier
    assert not Requirement("numpy>=99").specifier.contains(pin.version)
    assert "matplotlib" not in lock
