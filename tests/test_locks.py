"""The lock files satisfy pyproject.toml, pin every package and have hashes."""

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
REPLACED = {"serve": {"onnxruntime-gpu": "onnxruntime"}}  # requirements/serve.overrides


def locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """Return {package: (requirement, number of hashes)} of a lock file for the images' platform."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    packages: dict[str, tuple[Requirement, int]] = {}
    for line, hashes in re.findall(
        r"^(\w[^\\\n]*?) \\\n((?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n)+)", text, re.M
    ):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(LINUX):
            packages[canonicalize_name(requirement.name)] = (requirement, hashes.count("--hash"))
    return packages


@pytest.mark.parametrize("name", ["build", "export", "headers", "serve", "tools"])
def test_packages_are_pinned_with_hashes(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    packages = re.findall(r"^\w\S*", text, re.MULTILINE)
    assert packages
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", package) for package in packages), packages
    assert len(packages) == len(re.findall(r"^\w.* \\\n    --hash=", text, re.MULTILINE))
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)


@pytest.mark.parametrize("name", LOCKS)
def test_dependencies_are_locked(name: str) -> None:
    lock = locked(name)
    dependencies = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][LOCKS[name]]]
    for requirement in map(Requirement, dependencies):
        if requirement.marker and not requirement.marker.evaluate(LINUX):
            continue
        package = REPLACED.get(name, {}).get(requirement.name, requirement.name)
        assert package in lock, f"{package}: run `make lock`"
        [pin] = lock[package][0].specifier
        assert requirement.specifier.contains(pin.version), f"{package} {pin.version}: run `make lock`"
        assert lock[package][1] > 0


def test_serving_image_has_no_torch() -> None:
    names = set(locked("serve"))
    assert "onnxruntime" in names
    assert not names & {"torch", "torchvision", "timm", "onnxruntime-gpu", "scipy"}
    assert not [name for name in names if name.startswith("nvidia-")]


def test_outdated_lock_would_fail() -> None:
    lock = locked("serve")
    [pin] = lock["numpy"][0].specifier
    assert not Requirement("numpy>=99").specifier.contains(pin.version)
    assert "matplotlib" not in lock
