"""docs/tutorial.md, executed from top to bottom as a reader would."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SERVER = "terminal 1"  # the title of the block that starts the server
REST_PORT = "8000"  # as the tutorial writes it; the test uses a free one


def free_ports(count: int) -> list[str]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]


def run(script: str, cwd: Path, env: dict[str, str]) -> str:
    """Run a block in bash and return its standard output."""
    done = subprocess.run(["bash", "-euc", script], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def serving(command: str, ports: list[str], cwd: Path, env: dict[str, str]) -> Iterator[None]:
    """Run the server, which prints a line when it is ready, and stop it at the end."""
    arguments = [*command.split(), "--port", ports[0], "--grpc-port", ports[1]]
    with subprocess.Popen(arguments, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert ports[0] in process.stdout.readline()
            yield
        finally:
            process.terminate()
    assert process.returncode == 0


def test_tutorial_runs(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ports = free_ports(2)
    output = {}
    with ExitStack() as servers:
        for language, title, text in BLOCK.findall(TUTORIAL.read_text().replace(REST_PORT, ports[0])):
            if language in ("python", "toml"):
                (tmp_path / title).write_text(text)
            elif title == SERVER:
                servers.enter_context(serving(text, ports, tmp_path, env))
            elif language == "bash":
                output[text.strip()] = run(text, tmp_path, env)
    assert "'labels': ['flower']" in output["python request.py"]
    assert (tmp_path / "exported/scenes/report.html").is_file()
