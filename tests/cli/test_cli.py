"""The command line: its contract, and what it says when something is wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.recipe.recipe_file import merge, parse, to_toml
from robust_export.utils.version import __version__
from tests.conftest import TINY


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def one_object(result: Result) -> dict[str, Any]:
    """Return the one JSON object on standard output, and see that there is nothing else."""
    assert result.stdout.count("\n") == 1
    value: dict[str, Any] = json.loads(result.stdout)
    return value


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(parse(merge(TINY, {"train": {"epochs": 1}}))))
    return path


def test_train_onnx_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("train", "--recipe", recipe, "--eps", "0.2", "--seed", "7", "--json")
    assert result.exit_code == 0, result.output
    found = one_object(result)
    assert found["bundle"] == "exported/resnet10t_sparta"
    assert "epoch 1/1  loss" in result.stderr
    bundle = Bundle.open("resnet10t_sparta")
    assert bundle.threat.eps == 0.2
    assert bundle.recipe().train.seed == 7

    result = run("onnx", "--model", "resnet10t_sparta", "--opset", "19", "--json")
    assert result.exit_code == 0, result.output
    assert one_object(result)["opset"] == 19
    assert Path("exported/resnet10t_sparta/model.onnx").is_file()

    result = run("verify", "--model", "resnet10t_sparta", "--eps", "8/255", "--attacks", "apgd-ce", "--json")
    assert result.exit_code == 0, result.output
    report = one_object(result)
    assert report["threat"]["eps"] == pytest.approx(8 / 255)
    assert report["artifacts"][0]["verdict"] == "pass"
    assert report["command"] == (
        "robust-export verify --model resnet10t_sparta --eps 8/255 --attacks apgd-ce --json"
    )
    assert report == json.loads(Path("exported/resnet10t_sparta/verify.json").read_text())


def test_an_undecided_gate_exits_with_3(bundle: Bundle) -> None:
    result = run("verify", "--model", bundle.path, "--samples", "40", "--device", "cpu")
    assert result.exit_code == 3
    assert "UNDECIDED model.onnx" in result.stderr
    assert "UNDECIDED" in result.stdout


def test_a_rank_that_was_left_over_hides_no_verdict(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    result = run("verify", "--model", bundle.path, "--samples", "40", "--device", "cpu")
    assert result.exit_code == 3
    assert "UNDECIDED" in result.stdout


def test_the_command_that_repeats_it_can_be_typed_again(bundle: Bundle, tmp_path: Path) -> None:
    odd = tmp_path / "a file's copy.onnx"
    odd.write_bytes(bundle.file("model.onnx").read_bytes())
    given = [
        "verify", "--model", str(bundle.path), "--artifact", "model.onnx", "--artifact", str(odd),
        "--samples", "40", "--max-gap", "0.01", "--runtime", "onnxruntime",
    ]  # fmt: skip
    run(*given)
    command = json.loads((bundle.path / "verify.json").read_text())["command"]
    words = shlex.split(command)
    assert words[0] == "robust-export"
    assert sorted(words[1:]) == sorted(given)
    first = json.loads((bundle.path / "verify.json").read_text())
    run(*words[1:])
    again = json.loads((bundle.path / "verify.json").read_text())
    assert again["command"] == command
    assert again["source"] == first["source"]


def test_the_tables_are_for_people(bundle: Bundle) -> None:
    result = run("verify", "--model", bundle.path)
    assert result.exit_code == 0, result.output
    for word in ("clean accuracy", "robust accuracy", "PASS", "agreement", "flip margin", "Linf eps 0.1"):
        assert word in result.stdout


def test_options_go_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    from robust_export.cli.pipeline import _recipe

    file = tmp_path / "r.toml"
    file.write_text('[train]\nepochs = 7\nlr = 0.05\n[data]\nname = "digits"\n')
    options: dict[str, dict[str, Any]] = {"data": {}, "train": {"epochs": 9}, "model": {"name": None}}
    found = _recipe(file, options)
    assert (found.train.epochs, found.train.lr, found.threat.eps) == (9, 0.05, 0.15)
    assert found.model.name == "r18_sparta"
    other = _recipe(None, {"data": {"name": "svhn"}})
    assert (other.data.name, other.train.lr, other.model.image_size) == ("svhn", 0.01, 32)


@pytest.mark.parametrize(
    ("args", "code", "words"),
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
        (["train", "--epochs", "0"], 2, "epochs is 0"),
        (["train", "--device", "abacus"], 2, "abacus"),
        (["train", "--recipe", "none.toml"], 2, "none.toml"),
        (["train", "--init", "none.safetensors"], 1, "none.safetensors"),
        (["train", "--colour", "red"], 2, "--colour"),
        (["onnx", "--model", "nothing"], 1, "no bundle at exported/nothing"),
        (["onnx"], 2, "--model"),
        (["verify", "--model", "nothing"], 1, "robust-export train"),
        (["models", "zebra"], 1, "zebra"),
        (["fly"], 2, "fly"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) <= 12
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--attacks", "apgd-ce,magic"], "magic"),
        (["--attacks", ""], "attacks"),
        (["--max-drop", "2"], "max_drop"),
        (["--samples", "-1"], "samples"),
        (["--eps", "1/0"], "1/0"),
    ],
)
def test_bad_verify_options(bundle: Bundle, args: list[str], words: str) -> None:
    result = run("verify", "--model", bundle.path, *args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (bundle.path / "verify.json").exists()


def test_an_unknown_recipe_key_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("[train]\nepoch = 3\n")
    result = run("train", "--recipe", file)
    assert result.exit_code == 2
    assert "did you mean 'epochs'" in result.stderr


def test_a_bundle_altered_by_one_byte(bundle: Bundle) -> None:
    path = bundle.path / "sparta.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for command in ("onnx", "verify"):
        result = run(command, "--model", bundle.path)
        assert result.exit_code == 1
        assert "sparta.safetensors was altered" in result.stderr


def test_models_lists_every_name_and_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("models").stdout.split()
    assert {"r18_sparta", "resnet34_relu", "mobilenetv3_large_100_sparta"} <= set(names)
    few = one_object(run("models", "resnet10t", "--json"))["models"]
    assert few == [name for name in names if "resnet10t" in name]


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = one_object(run("doctor", "--json"))
    assert found["ready"]
    assert {"Python", "torch", "ONNX Runtime", "GPU"} <= {check["name"] for check in found["checks"]}
    from robust_export.cli import doctor

    version = doctor._version
    for package, code, advice in (
        ("pydantic", 1, "pip install pydantic"), ("timm", 0, "robust-export[train]"),
        ("starlette", 0, "robust-export[serve]"),
    ):  # fmt: skip
        monkeypatch.setattr(doctor, "_version", lambda name, p=package: None if name == p else version(name))
        result = run("doctor")
        assert result.exit_code == code
        assert advice in result.stdout


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [("torch", ["train"], "train"), ("uvicorn", ["serve", "--model", "x"], "serve")],
)
def test_a_command_without_its_extra_says_so(
    tmp_path: Path, package: str, command: list[str], extra: str
) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from robust_export.cli import cli; cli({command})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 1
    assert f"pip install 'robust-export[{extra}]'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_version() -> None:
    assert run("--version").stdout == f"robust-export, version {__version__}\n"


def commands() -> dict[str, click.Command]:
    return dict(cli.commands)


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_is_documented(name: str) -> None:
    command = commands()[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
    docs = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    assert f"## {name}\n" in docs
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"`{parameter.opts[0]}`" in docs, parameter.opts[0]
