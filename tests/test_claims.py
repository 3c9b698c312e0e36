"""Risk: a page claims what the kept results do not say."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from marl.reproduction import tables
from marl.reproduction.compare import below_random, standing
from marl.reproduction.results import random_of, recorded

RESULTS = Path(__file__).parents[1] / "results"


@pytest.mark.parametrize("name", tables.names())
def test_nothing_that_was_learned_is_worse_than_random_play(name):
    table = tables.load(name)
    runs = {row: recorded(RESULTS, row) for row in table.rows}
    chance = {row: random_of(RESULTS, row, table.header) for row, found in runs.items() if found}
    assert chance and None not in chance.values()
    assert [row.name for row in chance if below_random(standing(runs[row], table.header), chance[row])] == []


def test_fim_is_ahead_of_its_base_while_both_learn():
    """Push-2-Box, W = 9, at equal steps, over the first five seeds and over all (docs/fim.md)."""
    table = tables.load("push_box_w9")
    rows = {row.algorithm: row for row in table.rows}
    fim, qmix = (
        [standing([run], table.header).value for run in recorded(RESULTS, rows[name])] for name in ("fim", "qmix")
    )
    assert len(fim) == len(qmix) == 10
    for seeds in (5, 10):
        assert statistics.median(fim[:seeds]) > statistics.median(qmix[:seeds])
    assert sum(ours > base for ours, base in zip(fim, qmix)) > 5
