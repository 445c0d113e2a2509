"""All commands: documentation, bad input, missing packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from robust_export.bundle import Bundle
from robust_export.cli import cli, commands
from robust_export.cli.main import COMMANDS
from robust_export.utils.version import __version__
from tests.cli.invoke import run

DOCS = Path(__file__).parents[2] / "docs" / "commands.md"


def command_of(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_command_and_options_are_documented(name: str) -> None:
    command = command_of(name)
    assert command.help
    docs = DOCS.read_text()
    assert f"## {name}\n" in docs
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert f"`{parameter.opts[0]}`" in docs, parameter.opts[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_options(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in result.stdout


def test_summaries_in_help_are_complete() -> None:
    assert "..." not in run("--help").stdout.partition("Commands:")[2]


def test_every_command_module_is_listed() -> None:
    modules = {file.stem for file in Path(commands.__path__[0]).glob("[!_]*.py")}
    assert modules == set(COMMANDS)


def test_version() -> None:
    assert run("--version").stdout == f"robust-export, version {__version__}\n"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["train", "--model", "r18_sprta"], 2, "r18_sparta"),
        (["train", "--model", "vit_tiny_patch16_224_sparta"], 1, "no pointwise activation"),
        (["train", "--dataset", "digit"], 2, "did you mean 'digits'"),
        (["train", "--dataset", "cifar10", "--data-dir", "nowhere"], 1, "cifar-10-python.tar.gz"),
        (["train", "--dataset", "folder:nowhere"], 1, "no such folder"),
        (["train", "--eps", "-0.1"], 2, "eps"),
        (["train", "--eps", "1.5"], 2, "[0, 1]"),
        (["train", "--eps", "much"], 2, "8/255"),
        (["train", "--norm", "L1"], 2, "norm is 'L1'"),
        (["train", "--epochs", "0"], 2, "'--epochs'"),
        (["train", "--device", "abacus"], 2, "abacus"),
        (["train", "--recipe", "none.toml"], 2, "none.toml"),
        (["train", "--init", "none.safetensors"], 1, "none.safetensors"),
        (["train", "--colour", "red"], 2, "--colour"),
        (["onnx", "--model", "nothing"], 1, "no bundle at exported/nothing"),
        (["onnx"], 2, "--model"),
        (["onnx", "--model", "nothing", "--opset", "17"], 2, "'--opset'"),
        (["verify", "--model", "nothing"], 1, "robust-export train"),
        (["models", "zebra"], 1, "zebra"),
        (["fly"], 2, "fly"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) <= 12
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_altered_bundle_is_refused(bundle: Bundle) -> None:
    path = bundle.path / "sparta.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for command in ("onnx", "verify"):
        result = run(command, "--model", bundle.path)
        assert result.exit_code == 1
        assert "sparta.safetensors was altered" in result.stderr


HELP = """
import sys
from click.testing import CliRunner
from robust_export.cli import cli
assert CliRunner().invoke(cli, ["--help"]).exit_code == 0
print(*({"torch", "onnxruntime", "starlette", "onnx"} & sys.modules.keys()))
"""


def test_help_imports_no_large_package() -> None:
    ran = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


WITHOUT_EXTRAS = """
import sys
sys.modules.update(torch=None, uvicorn=None)
from click.testing import CliRunner
from robust_export.cli import cli, commands
from robust_export.cli.main import COMMANDS
for words in (["train"], ["serve", "--model", "x"]):
    result = CliRunner().invoke(cli, words)
    print(result.exit_code, result.stderr, end="")
"""


def test_missing_extra_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_EXTRAS]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    train, serve = ran.stdout.splitlines()
    assert train.startswith("1 Error: train needs torch")
    assert "pip install 'robust-export[train]'" in train
    assert serve.startswith("1 Error: serve needs uvicorn")
    assert "pip install 'robust-export[serve]'" in serve
