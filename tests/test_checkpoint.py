"""Risk: a saved run is lost, half-written or silently another."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from marl.checkpoint import Checkpoint, NoCheckpoint, load_latest, save


def make(step):
    tensors = {"learner": {"a": torch.full((3,), float(step)), "flag": torch.tensor(True)}, "replay": {}}
    tensors["replay"]["shared"] = tensors["learner"]["a"]
    gathered = {name: partial(dict, named) for name, named in tensors.items()}
    return Checkpoint(step, gathered, {"clock": {"steps": step}, "exact": 0.1 + 0.2})


def refuse(line):
    raise AssertionError(line)


def test_round_trip(tmp_path):
    save(tmp_path, make(7), keep=3)
    loaded = load_latest(tmp_path, refuse)
    assert loaded.step == 7 and loaded.state == {"clock": {"steps": 7}, "exact": 0.1 + 0.2}
    assert torch.equal(loaded.tensors["learner"]()["a"], torch.full((3,), 7.0))
    assert loaded.tensors["learner"]()["flag"].dtype == torch.bool
    assert torch.equal(loaded.tensors["replay"]()["shared"], torch.full((3,), 7.0))


def test_the_last_n_are_kept(tmp_path):
    for step in (5, 50, 500, 5000):
        save(tmp_path, make(step), keep=2)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [500, 5000]
    assert load_latest(tmp_path, refuse).step == 5000


@pytest.mark.parametrize("renamed", [0, 1])
def test_a_step_that_is_saved_again_is_never_missing(tmp_path, monkeypatch, renamed):
    save(tmp_path, make(7), keep=1)
    left, rename = iter([True] * renamed), Path.rename

    def killed(self, target):
        if not next(left, False):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, make(7), keep=1)
    monkeypatch.undo()
    assert load_latest(tmp_path, refuse).step == 7
    save(tmp_path, make(7), keep=1)
    assert load_latest(tmp_path, refuse).step == 7
    save(tmp_path, make(8), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["000000000008"]


def test_only_some_files_may_be_read(tmp_path):
    path = save(tmp_path, make(1), keep=1)
    (path / "replay.safetensors").write_bytes(b"gone")
    assert set(load_latest(tmp_path, refuse, only=("learner",)).tensors) == {"learner"}


def test_what_another_version_saved_is_told_and_not_passed_over(tmp_path):
    save(tmp_path, make(1), keep=3)
    path = save(tmp_path, make(2), keep=3)
    told = json.loads((path / "state.json").read_text())
    del told["format"]
    (path / "state.json").write_text(json.dumps(told))
    with pytest.raises(NoCheckpoint, match=r"000000000002: saved in format 1, this version reads 2"):
        load_latest(tmp_path, refuse)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "state", "json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, damage):
    save(tmp_path, make(1), keep=3)
    path = save(tmp_path, make(2), keep=3)
    file = path / "learner.safetensors"
    whole = file.read_bytes()
    if damage == "flip":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(whole[:-9])
    elif damage == "remove":
        file.unlink()
    elif damage == "state":
        (path / "state.json").unlink()
    else:
        (path / "state.json").write_text(json.dumps({"step": 2}))
    warned = []
    assert load_latest(tmp_path, warned.append).step == 1
    assert len(warned) == 1 and str(path) in warned[0] and "damaged" in warned[0]


def test_an_interrupted_write_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, make(1), keep=3)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("marl.checkpoint._sync", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, make(2), keep=3)
    monkeypatch.undo()
    assert load_latest(tmp_path, refuse).step == 1
    save(tmp_path, make(3), keep=3)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(NoCheckpoint, match="no checkpoint that can be used"):
        load_latest(tmp_path / "none", refuse)
