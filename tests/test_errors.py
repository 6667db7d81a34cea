"""Errors that a user reads."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset

from lvmmed_monai._optional import optional_import
from lvmmed_monai.errors import DataError, UserError, user_error_in


def test_exit_codes() -> None:
    assert UserError("x").exit_code == 2
    assert DataError("x").exit_code == 3
    assert issubclass(DataError, UserError)
    assert issubclass(UserError, ValueError)


def test_found_behind_a_cause_and_a_context() -> None:
    ours = DataError("ours")
    by_cause, by_context = RuntimeError("wrapper"), RuntimeError("wrapper")
    by_cause.__cause__ = KeyError("between")
    by_cause.__cause__.__context__ = ours
    by_context.__context__ = ours
    assert user_error_in(ours) is ours
    assert user_error_in(by_cause) is ours
    assert user_error_in(by_context) is ours


def test_none_where_there_is_none() -> None:
    circle = RuntimeError("circle")
    circle.__context__ = RuntimeError("other")
    circle.__context__.__context__ = circle
    assert user_error_in(None) is None
    assert user_error_in(RuntimeError("x")) is None
    assert user_error_in(circle) is None


def test_optional_package_names_its_extra() -> None:
    assert optional_import("json", extra="none").loads("1") == 1
    with pytest.raises(UserError, match=r"no_such_package is not installed.*pip install 'lvmmed-monai\[onnx\]'"):
        optional_import("no_such_package", extra="onnx")


class _Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise DataError("the image is damaged; case 7; copy it again")


def test_a_worker_of_a_data_loader_hands_over_the_sentence_alone() -> None:
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(_Broken(), num_workers=1)))
    found = user_error_in(caught.value)
    assert str(found) == "the image is damaged; case 7; copy it again"
    assert isinstance(found, DataError)
