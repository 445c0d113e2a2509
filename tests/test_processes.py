"""Child processes with torch imported already."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import run, run_cli, run_ranks, start


def report(path: Path) -> None:
    """Print the state that a child starts with, and write to both outputs."""
    os.write(1, b"by descriptor\n")
    print(os.environ.get("GIVEN"), os.environ.get("HOME"), Path.cwd() == path, "torch" in sys.modules)
    print("an error", file=sys.stderr)
    sys.exit(7)


def kill_itself(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)


def wait_forever() -> None:
    print("started", flush=True)
    signal.pause()


def sum_of_ranks(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    value = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(value)
    dist.destroy_process_group()
    (folder / os.environ["RANK"]).write_text(str(value.item()))


def test_output_environment_and_exit_code(tmp_path: Path) -> None:
    result = run(report, tmp_path, env={"GIVEN": "a value", "HOME": None}, cwd=tmp_path)
    assert result.returncode == 7
    assert sorted(result.stdout.splitlines()) == ["a value None True True", "by descriptor"]
    assert result.stderr == "an error\n"
    assert "GIVEN" not in os.environ


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_signals_are_negative_exit_codes(number: signal.Signals) -> None:
    assert run(kill_itself, number).returncode == -number


def test_exception_ends_with_traceback() -> None:
    result = run(int, "seven")
    assert result.returncode == 1
    assert "ValueError: invalid literal" in result.stderr


def test_child_can_be_killed_and_times_out() -> None:
    with start(wait_forever) as child:
        with pytest.raises(TimeoutError, match="did not end"):
            child.wait(0.2)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait().returncode == -signal.SIGKILL


def test_command_line_is_that_of_the_program() -> None:
    result = run_cli("train", "--no-such-option")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: robust-export train" in result.stderr


def test_ranks_form_a_process_group(tmp_path: Path) -> None:
    assert [result.returncode for result in run_ranks(2, sum_of_ranks, tmp_path)] == [0, 0]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["3", "3"]
