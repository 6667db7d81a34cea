"""Which items each numbered training step gets: a function of the seed and the step, of nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lvmmed_monai.errors import UserError

__all__ = ["StepBatchSampler"]


class StepBatchSampler:
    """A batch sampler of numbered steps, for ``DataLoader(batch_sampler=...)``.

    Each pass over the data is a permutation drawn from ``(seed, pass)``, cut into batches; what does
    not fill a last batch is left out of that pass. Every rank takes its own part of the step's batch.
    The keys are ``(draw, index)``: ``index`` into the dataset and ``draw``, a number that no other item
    of the run has, from which a dataset seeds its augmentation. So a run that starts at step ``s``
    sees what an uninterrupted run sees from there on, whatever the number of workers.

    Args:
        length: items in the dataset.
        batch_size: items a step and rank.
        total_steps: steps of the whole run.
        seed: seed of the order, at least 0.
        start_step: first step to give.
        rank: this process, 0 to ``world_size`` - 1.
        world_size: number of processes.

    Raises:
        UserError: the batch size does not fit the dataset.
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
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.seed = seed
        self.start_step = start_step
        self.distribute(rank, world_size)

    def distribute(self, rank: int, world_size: int) -> None:
        """Take the part of process ``rank`` of ``world_size``.

        Raises:
            UserError: the batch size does not fit the dataset.
        """
        if self.batch_size < 1:
            raise UserError(f"the batch size must be at least 1, got {self.batch_size}; batch_size; use 1 or more")
        if self.batch_size * world_size > self.length:
            largest = self.length // world_size
            processes = f" in each of {world_size} processes" if world_size > 1 else ""
            remedy = f"use at most {largest}" if largest else "add data or use fewer processes"
            raise UserError(
                f"the batch size {self.batch_size}{processes} does not fit a dataset of {self.length} items; "
                f"batch_size; {remedy}"
            )
        self.rank, self.world_size = rank, world_size

    @property
    def steps_per_pass(self) -> int:
        """Steps that one pass over the dataset gives."""
        return self.length // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        together = self.batch_size * self.world_size
        current, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.total_steps):
            number, within = divmod(step, self.steps_per_pass)
            if number != current:
                current, order = number, np.random.default_rng([self.seed, number]).permutation(self.length)
            first = self.rank * self.batch_size
            positions = range(first, first + self.batch_size)
            yield [(step * together + position, int(order[within * together + position])) for position in positions]
