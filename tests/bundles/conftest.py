"""Fixtures of the tests that run bundles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_material import write_volumes


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """A bundle's logging.conf replaces the handlers of the root logger; other tests want theirs back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small CT volumes with the labels of the generated torso."""
    return write_volumes(tmp_path_factory.mktemp("bundle_data"))
