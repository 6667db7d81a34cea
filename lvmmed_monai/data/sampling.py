"""Which items each numbered training step gets: a function of the seed and the step, of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvmmed_monai.errors import UserError

__all__ = ["StepBatchSampler"]

Indices = NDArray[np.int64]


class StepBatchSampler:
    """A batch sampler of numbered steps, for ``DataLoader(batch_sampler=...)``.

    Each pass over the data is a permutation drawn from ``(seed, pass)``, cut into batches; what does
    not fill a last batch is left out of that pass. Every rank takes its own part of the step's batch.
    The keys are ``(draw, index)``: ``index`` into the dataset and ``draw``, a number that no other item
    of the run has, from which a dataset seeds its augmentation. So a run that starts at step ``s``
    sees what an uninterrupted run sees from there on, whatever the number of workers.

    With ``neighbours`` n, a batch consists of n-tuples: runs of n items of one group that follow each other
    (neighbouring slices of a volume, frames of a clip), and, of what belongs to no such run, n items drawn at random.
    Where a group is cut into runs changes from pass to pass.

    Args:
        length: items in the dataset.
        batch_size: items a step and rank.
        total_steps: steps of the whole run.
        seed: seed of the order, at least 0.
        start_step: first step to give.
        rank: this process, 0 to ``world_size`` - 1.
        world_size: number of processes.
        repeats: how often each item comes in a pass, on average; in one pass it is the whole number below or above.
            The copies are spread evenly over the pass. None means once.
        groups: number of each item's group; the items of a group follow each other.
        neighbours: length of the runs; 1 takes no notice of groups.

    Raises:
        UserError: the batch size does not fit the dataset or the runs.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        total_steps: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        *,
        repeats: ArrayLike | None = None,
        groups: Sequence[int] | None = None,
        neighbours: int = 1,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.seed = seed
        self.start_step = start_step
        self.repeats = None if repeats is None else np.asarray(repeats, dtype=np.float64)
        self.groups = None if groups is None else np.asarray(groups)
        self.neighbours = neighbours
        self._check()
        self.distribute(rank, world_size)

    def _check(self) -> None:
        for name, values in (("repeats", self.repeats), ("groups", self.groups)):
            if values is not None and values.shape != (self.length,):
                raise UserError(f"{name} has shape {values.shape} for {self.length} items; sampler; give one for each")
        if self.repeats is not None and not (np.isfinite(self.repeats).all() and (self.repeats > 0).all()):
            raise UserError("an item is repeated 0 times or less; sampler; give positive numbers")
        if self.neighbours < 1 or self.batch_size % self.neighbours:
            raise UserError(
                f"the batch size {self.batch_size} is not made of runs of {self.neighbours} neighbouring slices; "
                "neighbours; use a batch size that is a multiple of it"
            )

    def distribute(self, rank: int, world_size: int) -> None:
        """Take the part of process ``rank`` of ``world_size``.

        Raises:
            UserError: the batch size does not fit the dataset.
        """
        if self.batch_size < 1:
            raise UserError(f"the batch size must be at least 1, got {self.batch_size}; batch_size; use 1 or more")
        if self.batch_size * world_size > self._items:
            largest = self._items // world_size
            processes = f" in each of {world_size} processes" if world_size > 1 else ""
            remedy = f"use at most {largest}" if largest else "add data or use fewer processes"
            raise UserError(
                f"the batch size {self.batch_size}{processes} does not fit a dataset of {self._items} items; "
                f"batch_size; {remedy}"
            )
        self.rank, self.world_size = rank, world_size

    @property
    def steps_per_pass(self) -> int:
        """Steps that one pass over the dataset gives."""
        return self._items // (self.batch_size * self.world_size)

    @property
    def _items(self) -> int:
        """Items of a pass, copies counted."""
        return self.length if self.repeats is None else int(self.repeats.sum())

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        together = self.batch_size * self.world_size
        steps_per_pass = self.steps_per_pass
        current, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.total_steps):
            number, within = divmod(step, steps_per_pass)
            if number != current:
                current, order = number, self._order(number, steps_per_pass * together)
            first = self.rank * self.batch_size
            positions = range(first, first + self.batch_size)
            yield [(step * together + position, int(order[within * together + position])) for position in positions]

    def _order(self, number: int, items: int) -> Indices:
        """The first ``items`` items of pass ``number``."""
        rng = np.random.default_rng([self.seed, number])
        if self.repeats is None and self.neighbours == 1:
            return rng.permutation(self.length)[:items]
        weights = np.ones(self.length) if self.repeats is None else self.repeats
        groups = np.arange(self.length) if self.groups is None else self.groups
        runs, singles = _runs(groups, self.neighbours, rng)
        chosen, places = _copies(weights[runs].mean(axis=1), rng)
        runs = runs[chosen]
        chosen, single_places = _copies(weights[singles], rng)
        singles = singles[chosen]
        if len(singles) % self.neighbours and len(runs):
            # A run taken apart fills the last tuple up, so that no picture is left out in every pass.
            apart = rng.integers(len(runs))
            singles = np.append(singles, runs[apart])
            single_places = np.append(single_places, rng.random(self.neighbours))
            runs, places = np.delete(runs, apart, axis=0), np.delete(places, apart)
        tuples, tuple_places = _tuples(singles, single_places, self.neighbours)
        order = np.concatenate([runs, tuples])[np.argsort(np.concatenate([places, tuple_places]))]
        # Broken numbers of copies may leave a pass one or two tuples short.
        return np.resize(order, items)


def _runs(groups: Indices, length: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """(R, length) runs of items of one group, each group cut from a random place on, and (S,) all other items."""
    items = np.arange(len(groups))
    if length == 1:
        return items[:0, None], items
    first = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    sizes = np.diff(first, append=len(groups))
    # Never so far that a group long enough would give no run.
    offsets = rng.integers(0, np.clip(sizes - length + 1, 1, length))
    starts, sizes = np.repeat(first + offsets, sizes), np.repeat(sizes - offsets, sizes)
    place = items - starts
    whole = (place >= 0) & (place // length * length + length <= sizes)
    return items[whole & (place % length == 0)][:, None] + np.arange(length), items[~whole]


def _copies(weights: NDArray[np.float64], rng: np.random.Generator) -> tuple[Indices, NDArray[np.float64]]:
    """Numbers of the things that have ``weights``, each as often as its weight says, and their places in a pass.

    A weight of 1.3 gives one copy, and in three of ten passes two (systematic sampling in random order). Copies of a
    thing lie evenly apart; places are between 0 and 1.
    """
    order = rng.permutation(len(weights))
    counts = np.diff(np.floor(np.cumsum(weights[order]) + rng.random()), prepend=0).astype(np.int64)
    things, count = np.repeat(order, counts), np.repeat(counts, counts)
    number = np.arange(len(things)) - np.repeat(np.cumsum(counts) - counts, counts)
    return things, (number + rng.random(len(things))) / count


def _tuples(items: Indices, places: NDArray[np.float64], length: int) -> tuple[Indices, NDArray[np.float64]]:
    """(T, length) items whose places are near each other, and their mean places; what fills no tuple is left out."""
    kept = np.argsort(places)[: len(items) // length * length].reshape(-1, length)
    return items[kept], places[kept].mean(axis=1)
