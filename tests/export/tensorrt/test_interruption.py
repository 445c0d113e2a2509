"""Interrupted builds: the bundle stays complete, and Ctrl-C ends a build without aborting the process."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from robust_export.bundle import Bundle
from robust_export.export.tensorrt.builder import Batch, Options
from robust_export.export.tensorrt.bundle_engines import export_engines
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.runtimes.tensorrt.variants import Variant
from tests import processes


def build_and_signal(folder: Path, number: int) -> None:
    """Build two engines; send a signal to this process in each phase of the second one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    phases = []

    def on_phase(phase: str) -> None:
        phases.append(phase)
        if phases.count("Building engine") == 2:
            os.kill(os.getpid(), number)

    capabilities = [(8, 6), (8, 9)]
    monitor = Monitor(on_phase)
    export_engines(
        Bundle.open(folder), plugin="none", capabilities=capabilities, variant="rtx", monitor=monitor
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_build_keeps_the_bundle(bundle: Bundle, rtx: Variant, number: signal.Signals) -> None:
    result = processes.run(build_and_signal, bundle.path, number)
    assert result.returncode in (-number, 1)
    if number == signal.SIGINT:
        assert result.stderr.strip().endswith("KeyboardInterrupt")  # ended by Python, not aborted by TensorRT
    opened = Bundle.open(bundle.path)
    assert opened.files("engine") == ["model.body.sm86.rtx.engine"]
    export_engines(opened, plugin="none", capabilities=[(8, 9)], variant="rtx")
    assert "model.body.sm89.rtx.engine" in Bundle.open(bundle.path).files("engine")


@pytest.mark.usefixtures("foreground")
def test_repeated_ctrl_c_stops_a_build(rtx: Variant) -> None:
    monitor = Monitor()
    progress_monitor = monitor.progress_monitor(rtx.trt)

    def work() -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        pause = threading.Event()
        while progress_monitor.step_complete("phase", 1):
            pause.wait(0.01)

    with pytest.raises(KeyboardInterrupt):
        monitor.run(work)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_rebuilt_engine_replaces_the_old_one(bundle: Bundle, rtx: Variant) -> None:
    for maximum in (2, 4):
        [path] = export_engines(
            bundle, options=Options(Batch(1, 2, maximum)), capabilities=[(8, 9)], variant="rtx", plugin="none"
        )
        assert Bundle.open(bundle.path).manifest["files"][path.name]["profile"]["max"] == maximum
    assert Bundle.open(bundle.path).files("engine") == ["model.body.sm89.rtx.engine"]
