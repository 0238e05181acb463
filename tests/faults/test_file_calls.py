"""Killed, torn or failing at any file call, a run comes to the same end; the quick form takes some of the calls."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.sweep import ERRORS, MODES, Zygote, break_at, what_it_came_to

STEP = int(os.environ.get("TBT_FAULTS_EVERY", "0"))  # of how many calls one is broken; 0 = as the test says


@pytest.fixture(scope="module")
def zygote(tmp_path_factory) -> Iterator[Zygote]:
    """Everything imported, the injector in it."""
    try:
        made = Zygote(tmp_path_factory.mktemp("zygote"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory) -> tuple[tuple[Any, ...], int]:
    """What the run comes to when nobody breaks it, and how many file calls it makes."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = zygote.attempt(run, arm=(-1, MODES["count"], 0, False))
    assert done["code"] == 0, done["said"]
    return what_it_came_to(run), done["calls"]


def calls(total: int, every: int, first: int) -> range:
    return range(first, total + 1, STEP or every)


@pytest.mark.parametrize("every", [60, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["killed before", "killed after", "torn"])
def test_killed_at_a_file_call(zygote: Zygote, whole, tmp_path: Path, mode: str, every: int):
    same, total = whole
    assert total > 200
    row = break_at(
        zygote, tmp_path, mode, (MODES[mode], 0, False), calls(total, every, 1 + MODES[mode] * every // 5), same
    )
    assert not row.lost, row.lost[:3]
    assert row.survived == row.injected > 0


@pytest.mark.parametrize("every", [100, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_that_passes_hardly_ever_stops_a_run(zygote: Zygote, whole, tmp_path: Path, error: str, every: int):
    same, total = whole
    row = break_at(zygote, tmp_path, error, (MODES["short"], ERRORS[error], False), calls(total, every, 7), same)
    assert not row.lost, row.lost[:3]
    assert row.went_on >= 0.95 * row.injected > 0


@pytest.mark.parametrize("every", [200, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("error", ["ENOSPC", "ENOTCONN"])
def test_an_error_that_stays_loses_nothing_that_was_saved(
    zygote: Zygote, whole, tmp_path: Path, error: str, every: int
):
    same, total = whole
    row = break_at(zygote, tmp_path, error, (MODES["failing"], ERRORS[error], True), calls(total, every, 31), same)
    assert not row.lost, row.lost[:3]
    assert row.survived == row.injected > 0
