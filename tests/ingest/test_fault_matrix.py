"""The fault matrix on a generated oblique series: each damaged copy is read right or refused with the right code."""

from __future__ import annotations

import pytest
from damage import DAMAGES, oblique_series
from readings import check_damage

GOOD = oblique_series()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_each_damage_is_read_right_or_refused(damage, tmp_path):
    check_damage(damage, GOOD, tmp_path)
