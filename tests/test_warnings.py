"""pytest's warning filters: deprecations inside torch and its kin do not fail our tests, all others do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CONFIGURATION = str(Path(__file__).parents[1] / "pyproject.toml")

CASES = {  # module that warns, category: outcome
    ("torch.jit._script", "DeprecationWarning"): "PASSED",
    ("torch._inductor.compile_fx", "FutureWarning"): "PASSED",
    ("torch.onnx._internal", "DeprecationWarning"): "PASSED",
    ("onnxscript", "DeprecationWarning"): "PASSED",
    ("timm.models", "FutureWarning"): "PASSED",
    ("torch._inductor.compile_fx", "UserWarning"): "FAILED",
    ("robust_export.nn.sparta", "DeprecationWarning"): "FAILED",
    ("robust_export.export.exporter", "FutureWarning"): "FAILED",
    ("tests.test_warnings", "DeprecationWarning"): "FAILED",
    ("torch_of_someone_else", "DeprecationWarning"): "FAILED",
}

TEST_FILE = """
import pytest

@pytest.mark.parametrize(("module", "category"), {cases!r})
def test_warning(module, category):
    exec(f"import warnings; warnings.warn('old', {{category}})", {{"__name__": module}})
"""


def test_only_deprecations_inside_libraries_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "test_file.py"
    file.write_text(TEST_FILE.format(cases=list(CASES)))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        CONFIGURATION,
        "-rA",
        "-p",
        "no:cacheprovider",
        str(file),
    ]
    output = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTEST_ADDOPTS": ""}
    ).stdout
    outcomes = re.findall(r"^(PASSED|FAILED) \S*test_warning\[(\S+)-(\w+)\]", output, re.MULTILINE)
    assert {(module, category): outcome for outcome, module, category in outcomes} == CASES, output
