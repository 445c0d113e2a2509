"""Pool of jobs: runs several at a time, each in its own process, and leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from robust_export.comparison.job import Job, run_job
from robust_export.errors import InvalidValue, RobustExportError, TrainingError
from robust_export.utils.device import find_device
from robust_export.utils.files import write_json

Say = Callable[[str], None]

PROCESS = "import sys; from robust_export.comparison.job import main; sys.exit(main(sys.argv[1]))"


class JobPool:
    """Runs jobs, `count` at a time; with a count of 1 in this process.

    Attributes:
        say: receives a line for every finished or failed job.
        running: processes that are running.
    """

    def __init__(self, count: int, device: str, say: Say) -> None:
        self.count, self.device, self.say = count, device, say
        self.running: set[subprocess.Popen[str]] = set()
        self.lock, self.closed = Lock(), False

    def run(self, jobs: Sequence[Job]) -> dict[Path, dict[str, Any]]:
        """Return the results by folder. Jobs with the same folder run once, finished ones are not run again.

        Raises:
            TrainingError: if jobs failed; the others are finished first.
        """
        unique = {job.folder: job for job in jobs}
        results: dict[Path, dict[str, Any]] = {}
        failed: dict[Path, str] = {}

        def run_one(job: Job) -> None:
            try:
                stored = job.stored_result()
                result = results[job.folder] = stored or self._run(job)
            except RobustExportError as error:
                failed[job.folder] = str(error)
                self.say(f"{job.folder} failed: {str(error).splitlines()[0]}")
                return
            time = "already done" if stored else f"{result['seconds']:.0f} s"
            robust = result.get("robust_accuracy")
            outcome = f"robust {robust:.1%}" if robust is not None else "trained"
            number = len(results) + len(failed)
            self.say(f"{number}/{len(unique)} {job.folder}: {outcome} ({time})")

        self._run_all(run_one, list(unique.values()))
        if failed:
            raise TrainingError(
                f"{len(failed)} of {len(unique)} runs failed, the others are kept:\n  "
                + "\n  ".join(f"{folder}: {text}" for folder, text in failed.items())
                + "\nFix the cause and run the same command again."
            )
        return results

    def _run_all(self, run_one: Callable[[Job], None], jobs: Sequence[Job]) -> None:
        """Run all jobs; on an interruption, ask running processes to stop and wait for them."""
        if self.count == 1:
            for job in jobs:
                run_one(job)
            return
        with ThreadPoolExecutor(self.count) as threads:
            try:
                list(threads.map(run_one, jobs))
            except BaseException:
                self._close()
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def _run(self, job: Job) -> dict[str, Any]:
        if self.count == 1:
            return run_job(job)
        file = job.folder.with_name(f"{job.folder.name}.job.json")
        write_json(file, {**vars(job), "folder": str(job.folder)})
        command = [sys.executable, "-c", PROCESS, str(file)]
        with self.lock:
            if self.closed:
                raise TrainingError("not started: the comparison was interrupted")
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches this process only, which terminates each child once
            )  # fmt: skip
            self.running.add(process)
        _, stderr = process.communicate()
        self.running.discard(process)
        file.unlink()
        if process.returncode or (result := job.stored_result()) is None:
            lines = stderr.strip().splitlines() or [f"the process ended with {process.returncode}"]
            raise TrainingError(lines[-1] if "Traceback" in stderr else "\n  ".join(lines))
        return result

    def _close(self) -> None:
        """Ask running processes to save their state and stop; start no more."""
        with self.lock:
            self.closed = True
            for process in list(self.running):  # a copy: other threads remove finished ones
                process.terminate()


def job_count(jobs: int | None, device: str) -> int:
    """Return how many jobs to run at a time: by default one for each core on the CPU, else one.

    Raises:
        InvalidValue: if `jobs` is below 1.
    """
    if jobs is not None and jobs < 1:
        raise InvalidValue(f"jobs is {jobs}; expected 1 or more")
    if jobs is not None:
        return jobs
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if find_device(device).type == "cpu" else 1
