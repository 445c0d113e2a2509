"""Work items are computed once, across processes and interruptions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robust_export.errors import InvalidValue
from robust_export.utils.work_items import Arrays, WorkItems, launched_ranks, to_array, to_lines


def squares(done: list[int]) -> Callable[[int], Arrays]:
    """Return a function that computes i * i and appends i to `done`."""

    def compute(i: int) -> Arrays:
        done.append(i)
        return {"square": np.array([i * i]), "flags": to_array([f"item {i}", "ä"])}

    return compute


def test_results_are_ordered_and_computed_once(tmp_path: Path) -> None:
    done: list[int] = []
    first = WorkItems(tmp_path).run("stage", squares(done), 4)
    assert [int(result["square"][0]) for result in first] == [0, 1, 4, 9]
    assert done == [0, 1, 2, 3]
    again = WorkItems(tmp_path)
    second = again.run("stage", squares(done), 4)
    assert done == [0, 1, 2, 3]
    assert again.reused == 4
    assert [to_lines(result["flags"]) for result in second] == [[f"item {i}", "ä"] for i in range(4)]


def test_interrupted_run_computes_only_the_rest(tmp_path: Path) -> None:
    done: list[int] = []

    def interrupted(i: int) -> Arrays:
        if i == 2:
            raise KeyboardInterrupt
        return squares(done)(i)

    with pytest.raises(KeyboardInterrupt):
        WorkItems(tmp_path).run("stage", interrupted, 4)
    WorkItems(tmp_path).run("stage", squares(done), 4)
    assert done == [0, 1, 2, 3]


def test_damaged_result_is_recomputed(tmp_path: Path) -> None:
    done: list[int] = []
    WorkItems(tmp_path).run("stage", squares(done), 2)
    (second,) = tmp_path.glob("stage.*.1.safetensors")
    second.write_bytes(b"half")
    WorkItems(tmp_path).run("stage", squares(done), 2)
    assert done == [0, 1, 1]


def test_stages_are_separate_and_finish_deletes(tmp_path: Path) -> None:
    items = WorkItems(tmp_path / "parts")
    items.run("one", lambda i: {"x": np.array([1])}, 1)
    (other,) = items.run("two", lambda i: {"x": np.array([2])}, 1)
    assert other["x"] == 2
    items.finish()
    assert not (tmp_path / "parts").exists()


def test_result_is_reused_for_equal_inputs_only(tmp_path: Path) -> None:
    def run(value: int, depends_on: list[bytes] | None) -> int:
        (result,) = WorkItems(tmp_path).run(
            "stage", lambda i: {"x": np.array([value])}, 1, depends_on=depends_on
        )
        return int(result["x"][0])

    assert run(1, [b"a", b"b"]) == 1
    assert run(2, [b"ab"]) == 2
    assert run(3, [b"a"]) == 3
    assert run(4, [b"a", b"b"]) == 1
    assert run(5, None) == 5
    assert run(6, None) == 6  # nothing is kept


def test_other_item_count_is_not_reused(tmp_path: Path) -> None:
    for count in (1, 2):
        WorkItems(tmp_path).run("stage", lambda i: {"x": np.array([i])}, count)
    assert len(list(tmp_path.iterdir())) == 3


def test_empty_result_and_no_items(tmp_path: Path) -> None:
    (result,) = WorkItems(tmp_path).run("empty", lambda i: {"x": np.zeros((0, 3)), "flags": to_array([])}, 1)
    assert result["x"].shape == (0, 3)
    assert to_lines(result["flags"]) == []
    assert WorkItems(tmp_path).run("none", lambda i: {}, 0) == []


@pytest.mark.parametrize(("rank", "world"), [("", "2"), ("2", "2"), ("-1", "2"), ("x", "2"), ("0", "many")])
def test_invalid_launcher_environment(monkeypatch: pytest.MonkeyPatch, rank: str, world: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(InvalidValue, match="torchrun"):
        WorkItems()


def test_processes_that_cannot_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidValue, match="cannot connect"):
        WorkItems()


@pytest.mark.parametrize("world", ["", "1"])
def test_rank_without_world_size_is_ignored(monkeypatch: pytest.MonkeyPatch, world: str) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", world)
    assert launched_ranks() == (0, 1)
