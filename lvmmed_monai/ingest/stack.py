"""A stack: slices of one volume, with what the geometric checks ask of them, computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lvmmed_monai.dicom.geometry import (
    Array,
    SliceGrid,
    StepReport,
    analyse_steps,
    is_orientation,
    orientation_spread_deg,
    plane_axes,
    position_groups,
    slice_order,
    tilt_deg,
)
from lvmmed_monai.dicom.headers import Header

__all__ = ["MINIMUM_SLICES", "Stack", "positioned", "positions_of"]

MINIMUM_SLICES = 3
"""Two slices cannot show whether steps are even."""


def positioned(headers: Iterable[Header]) -> bool:
    """Whether every instance has a position and a valid orientation."""
    return all(header.position is not None and is_orientation(header.orientation or ()) for header in headers)


def positions_of(headers: Sequence[Header]) -> Array:
    """Positions (n, 3) in mm (LPS) of instances that have one."""
    return np.array([header.position for header in headers], dtype=float)


@dataclass
class Stack:
    """The slices of one volume, as far as headers tell.

    Attributes:
        members: slices in no particular order, copies left out.
        strict: smaller tolerances, and no repairs.
        minimum: slices that it needs; 2 where further volumes of the series lie at the same places.
    """

    members: tuple[Header, ...]
    strict: bool = False
    minimum: int = MINIMUM_SLICES

    @property
    def first(self) -> Header:
        """The first slice in space, or any of them where positions are missing."""
        return self.slices[0] if self.positioned else self.members[0]

    @cached_property
    def positioned(self) -> bool:
        """Whether every slice has a position and a valid orientation."""
        return bool(self.members) and positioned(self.members)

    @cached_property
    def spread_deg(self) -> float:
        """Largest angle between the axes of any slice and the first one, degrees."""
        return orientation_spread_deg(np.array([header.orientation for header in self.members], dtype=float))

    @cached_property
    def places(self) -> int:
        """Number of different positions; needs ``positioned``."""
        return len(position_groups(positions_of(self.members), self._normal))

    @property
    def _normal(self) -> Array:
        return plane_axes(self.members[0].orientation or ())[2]

    @cached_property
    def slices(self) -> tuple[Header, ...]:
        """Slices in the order of their projection on the normal; needs ``positioned``."""
        order = slice_order(positions_of(self.members), self._normal)
        return tuple(self.members[index] for index in order)

    @cached_property
    def steps(self) -> StepReport:
        """Steps between the slices; needs ``positioned`` and two slices."""
        return analyse_steps(positions_of(self.slices), self._normal, strict=self.strict)

    @cached_property
    def tilt(self) -> float:
        """Angle between the direction of stacking and the normal, degrees; needs ``positioned`` and two slices."""
        return tilt_deg(positions_of(self.slices), self._normal)

    @cached_property
    def grid(self) -> SliceGrid:
        """The voxel grid; only of a stack that passed the geometric checks."""
        first = self.slices[0]
        if first.pixel_spacing is None:
            raise ValueError("grid: the stack did not pass the geometric checks")
        return SliceGrid(
            columns=first.columns,
            rows=first.rows,
            orientation=np.array(first.orientation, dtype=float),
            pixel_spacing=first.pixel_spacing,
            positions=positions_of(self.slices),
        )
