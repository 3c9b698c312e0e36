"""Randomness from (run seed, purpose, number): never from a process, a clock or the order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch

from marl.types import Array

TRAIN, EVALUATE = "train", "evaluate"
"""What episodes are played for: see `Dice.purpose`."""
EXPLORATION = "exploration"
"""The stream that decides who explores and how: (N, 2) numbers a step."""
CHUNK = 32
"""Steps drawn at once: a draw per step and episode would cost more than the policy."""


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix(word: Array) -> Array:
    """Scrambled uint64 of any shape: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: Array = word ^ (word >> np.uint64(31))
    return scrambled


def sequence(seed: int, purpose: str, number: int, stream: str = "") -> np.random.SeedSequence:
    """The root of one stream. Names are hashed with a checksum that is the same in every process."""
    return np.random.SeedSequence((seed, crc32(purpose.encode()), number, crc32(stream.encode())))


def integer(seed: int, purpose: str, number: int, stream: str = "") -> int:
    """A seed below 2**31 for a library that wants one integer."""
    return int(sequence(seed, purpose, number, stream).generate_state(1)[0] & 0x7FFFFFFF)


def generator(seed: int, purpose: str, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Torch randomness for a numbered piece of work at the learner, such as one update."""
    return torch.Generator(device).manual_seed(integer(seed, purpose, number))


class Noise:
    """The learner's randomness during one update: each purpose has a generator of its own.

    A part that draws nothing, or draws from its own purpose, leaves every other part's numbers as they were.
    """

    def __init__(self, seed: int, update: int, device: torch.device | str = "cpu") -> None:
        self.seed, self.update, self.device = seed, update, torch.device(device)
        self._generators: dict[str, torch.Generator] = {}

    def __call__(self, purpose: str) -> torch.Generator:
        if purpose not in self._generators:
            self._generators[purpose] = generator(self.seed, f"learner/{purpose}", self.update, self.device)
        return self._generators[purpose]


class Dice:
    """Randomness of E episodes played side by side, each from its own number.

    An episode's draws do not depend on which episodes are played beside it, nor where.
    """

    def __init__(self, seed: int, purpose: str, episodes: Sequence[int]) -> None:
        self.seed, self.purpose, self.episodes = seed, purpose, tuple(episodes)
        self._streams: dict[tuple[str, str], _Stream] = {}

    def seeds(self) -> list[int]:
        """(E,) one seed per episode for its simulator."""
        return [integer(self.seed, self.purpose, episode, "simulator") for episode in self.episodes]

    def uniform(self, stream: str, shape: tuple[int, ...] = ()) -> Array:
        """(E, *shape) float32 in [0, 1): the next entry of a named stream."""
        return self._next(stream, "random", shape)

    def normal(self, stream: str, shape: tuple[int, ...] = ()) -> Array:
        """(E, *shape) float32 standard normal: the next entry of a named stream."""
        return self._next(stream, "standard_normal", shape)

    def _next(self, stream: str, law: str, shape: tuple[int, ...]) -> Array:
        key = (stream, law)
        if key not in self._streams:
            roots = [sequence(self.seed, self.purpose, episode, stream) for episode in self.episodes]
            self._streams[key] = _Stream([np.random.Generator(np.random.SFC64(root)) for root in roots], law, shape)
        return self._streams[key].next(shape)


class _Stream:
    def __init__(self, generators: list[np.random.Generator], law: str, shape: tuple[int, ...]) -> None:
        self._draws = [getattr(generator, law) for generator in generators]
        self._shape = shape
        self._block = np.empty((0, *shape), np.float32)
        self._step = CHUNK

    def next(self, shape: tuple[int, ...]) -> Array:
        if shape != self._shape:
            raise ValueError(f"a stream keeps its shape: {self._shape} was asked for before, now {shape}")
        if self._step == CHUNK:
            drawn = [draw((CHUNK, *shape), dtype=np.float32) for draw in self._draws]
            self._block, self._step = np.stack(drawn, 1), 0
        self._step += 1
        drawn_now: Array = self._block[self._step - 1]
        return drawn_now
