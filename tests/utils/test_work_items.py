"""WorkItems are done once, whoever does them, and whatever interrupts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robust_export.errors import InvalidValue
from robust_export.utils.work_items import Arrays, WorkItems, launched_ranks, to_array, to_lines


def squares(done: list[int]) -> object:
    def compute(i: int) -> Arrays:
        done.append(i)
        return {"square": np.array([i * i]), "flags": to_array([f"unit {i}", "ä"])}

    return compute


def test_results_are_in_order_and_computed_once(tmp_path: Path) -> None:
    done: list[int] = []
    first = WorkItems(tmp_path).run("stage", squares(done), 4)  # type: ignore[arg-type]
    assert [int(result["square"][0]) for result in first] == [0, 1, 4, 9]
    assert done == [0, 1, 2, 3]
    again = WorkItems(tmp_path)
    second = again.run("stage", squares(done), 4)  # type: ignore[arg-type]
    assert done == [0, 1, 2, 3]
    assert again.reused == 4
    assert [to_lines(result["flags"]) for result in second] == [[f"unit {i}", "ä"] for i in range(4)]


def test_after_an_interruption_only_the_rest_is_done(tmp_path: Path) -> None:
    done: list[int] = []

    def dies(i: int) -> Arrays:
        if i == 2:
            raise KeyboardInterrupt
        return squares(done)(i)  # type: ignore[operator,no-any-return]

    with pytest.raises(KeyboardInterrupt):
        WorkItems(tmp_path).run("stage", dies, 4)
    WorkItems(tmp_path).run("stage", squares(done), 4)  # type: ignore[arg-type]
    assert done == [0, 1, 2, 3]


def test_a_damaged_result_is_computed_again(tmp_path: Path) -> None:
    done: list[int] = []
    WorkItems(tmp_path).run("stage", squares(done), 2)  # type: ignore[arg-type]
    (second,) = tmp_path.glob("stage.*.1.safetensors")
    second.write_bytes(b"half")
    WorkItems(tmp_path).run("stage", squares(done), 2)  # type: ignore[arg-type]
    assert done == [0, 1, 1]


def test_stages_do_not_mix_and_nothing_is_left_in_the_end(tmp_path: Path) -> None:
    units = WorkItems(tmp_path / "parts")
    units.run("one", lambda i: {"x": np.array([1])}, 1)
    (other,) = units.run("two", lambda i: {"x": np.array([2])}, 1)
    assert other["x"] == 2
    units.finish()
    assert not (tmp_path / "parts").exists()


def test_what_a_result_depends_on_tells_it_from_others(tmp_path: Path) -> None:
    def one(value: int, given: list[bytes] | None) -> int:
        (result,) = WorkItems(tmp_path).run("stage", lambda i: {"x": np.array([value])}, 1, depends_on=given)
        return int(result["x"][0])

    assert one(1, [b"a", b"b"]) == 1
    assert one(2, [b"ab"]) == 2
    assert one(3, [b"a"]) == 3
    assert one(4, [b"a", b"b"]) == 1
    assert one(5, None) == 5
    assert one(6, None) == 6  # nothing is kept


def test_another_number_of_units_is_other_work(tmp_path: Path) -> None:
    for count in (1, 2):
        WorkItems(tmp_path).run("stage", lambda i: {"x": np.array([i])}, count)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_empty_result_and_no_units(tmp_path: Path) -> None:
    (result,) = WorkItems(tmp_path).run("empty", lambda i: {"x": np.zeros((0, 3)), "flags": to_array([])}, 1)
    assert result["x"].shape == (0, 3)
    assert to_lines(result["flags"]) == []
    assert WorkItems(tmp_path).run("none", lambda i: {}, 0) == []


@pytest.mark.parametrize(("rank", "world"), [("", "2"), ("2", "2"), ("-1", "2"), ("x", "2"), ("0", "many")])
def test_half_a_launcher(monkeypatch: pytest.MonkeyPatch, rank: str, world: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(InvalidValue, match="torchrun"):
        WorkItems()


def test_nobody_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidValue, match="cannot connect"):
        WorkItems()


@pytest.mark.parametrize("world", ["", "1"])
def test_a_rank_that_was_left_over_says_nothing(monkeypatch: pytest.MonkeyPatch, world: str) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", world)
    assert launched_ranks() == (0, 1)
