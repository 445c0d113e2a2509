"""Child processes that have torch imported already.

A new interpreter needs seconds to import torch, timm and this package. The children of this module are forked
from a server process that has imported them once per test session (`multiprocessing`'s forkserver), so that
each starts in milliseconds. Unlike a fork of the test process, a child has none of its threads, open bundles
or monkeypatches. A child can be killed, gets its own environment and working directory, and its output is
captured by file descriptor.

    result = run(train_and_die, folder, cwd=tmp_path)     # a module-level function; its arguments are pickled
    result = run_cli("train", "--json", "--out", folder)  # the command line
    results = run_ranks(2, verify_shared, folder)         # as `torchrun --nproc-per-node 2` does

Tests of start-up itself (what is imported, interpreter options) start an interpreter with `subprocess`.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with OpenMP's threads cannot fork safely

TIMEOUT = 120.0  # s
PRELOADED = [
    "torch", "timm", "torch.distributed", "onnx", "onnxruntime", "robust_export.cli",
    "robust_export.training.run", "robust_export.export.bundle_onnx", "robust_export.verification.verify",
]  # fmt: skip

_context = get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Result:
    """A finished child: `returncode` is negative for a signal, as in `subprocess`."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Child:
    """A running child process and the files that capture its output."""

    process: BaseProcess
    stdout: Path
    stderr: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout: float = TIMEOUT) -> Result:
        """Wait for the end of the process; raise TimeoutError after `timeout` seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError(f"process {self.pid} did not end in {timeout} s; {self.stderr.read_text()}")
        return Result(self.process.exitcode, self.stdout.read_text(), self.stderr.read_text())


@contextmanager
def start(
    function: Callable[..., object],
    *args: object,
    env: Mapping[str, str | None] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Iterator[Child]:
    """Start `function(*args)` in a child process, and kill it at the end if it is still running.

    Args:
        function: importable by name; an exception ends the child with exit code 1 and a traceback.
        env: changes to this process's environment; None removes a variable.
        cwd: working directory; the current one by default.
    """
    changes = env or {}
    environment = {k: v for k, v in {**os.environ, **changes}.items() if v is not None}
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        for file in (stdout, stderr):
            file.touch()
        process = _context.Process(
            target=_call, args=(function, args, environment, os.fspath(cwd or Path.cwd()), stdout, stderr)
        )
        process.start()
        try:
            yield Child(process, stdout, stderr)
        finally:
            process.kill()
            process.join()
            process.close()


def run(
    function: Callable[..., object],
    *args: object,
    env: Mapping[str, str | None] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = TIMEOUT,
) -> Result:
    """Return what became of `function(*args)` in a child process; see `start`."""
    with start(function, *args, env=env, cwd=cwd) as child:
        return child.wait(timeout)


def run_cli(*words: str | os.PathLike[str], **options: Any) -> Result:
    """Run the command line in a child process; `options` are those of `run`."""
    return run(command_line, *(os.fspath(word) for word in words), **options)


def run_ranks(count: int, function: Callable[..., object], *args: object, **options: Any) -> Sequence[Result]:
    """Run `function(*args)` on `count` ranks with the environment that torchrun sets; return them by rank.

    The first rank to fail does not end the others, so `function` must leave no rank waiting for it.
    """
    timeout = options.pop("timeout", TIMEOUT)
    env = {
        **options.pop("env", {}), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
    }  # fmt: skip
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                start(function, *args, env={**env, "RANK": str(i), "LOCAL_RANK": str(i)}, **options)
            )
            for i in range(count)
        ]
        return [child.wait(timeout) for child in children]


def command_line(*words: str) -> None:
    """Run robust-export with these arguments; exits as the program does."""
    from robust_export.cli import cli

    cli.main(list(words), prog_name="robust-export")


def _call(
    function: Callable[..., object],
    args: Sequence[object],
    environment: Mapping[str, str],
    cwd: str,
    stdout: Path,
    stderr: Path,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for descriptor, file in ((1, stdout), (2, stderr)):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    function(*args)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
