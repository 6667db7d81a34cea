"""Intensity rules of each modality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from lvmmed_monai.errors import UserError
from lvmmed_monai.transforms.intensity import MODALITIES, ScaleIntensityByModalityd, scale_intensity


def test_ct_window_maps_hounsfield_units() -> None:
    hu = torch.tensor([-3024, -1000, -500, -50, 400, 1377], dtype=torch.int16)
    expected = torch.tensor([0, 0, 0, 0.5, 1, 1], dtype=torch.float32)
    torch.testing.assert_close(scale_intensity(hu, "CT"), expected)


def test_given_window_takes_precedence() -> None:
    torch.testing.assert_close(scale_intensity(torch.tensor([0, 50, 100]), "MR", (0, 100)), torch.tensor([0, 0.5, 1]))


def test_ct_that_is_not_in_hounsfield_units_is_scaled_by_percentiles() -> None:
    # as in an 8-bit copy of a CT: an HU window would leave only 0.55 .. 0.84
    values = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    scaled = scale_intensity(values, "CT")
    assert scaled.min() == 0
    assert scaled.max() == 1


@pytest.mark.parametrize("modality", ["MR", "PET"])
def test_percentiles_agree_with_numpy(modality: str) -> None:
    values = np.random.default_rng(0).gamma(2.0, 1e6, size=(1, 9, 8, 7))
    low, high = np.percentile(values, [0.5, 99.5])
    expected = np.clip((values - low) / (high - low), 0, 1)
    np.testing.assert_allclose(scale_intensity(torch.from_numpy(values), modality).numpy(), expected, atol=1e-6)


def test_percentile_scaling_ignores_the_units() -> None:
    values = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    rescaled = scale_intensity(values * 3e5 + 7, "MR")
    torch.testing.assert_close(rescaled, scale_intensity(values, "MR"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("modality", ["XR", "US", "COLOR", "OTHER"])
def test_eight_bit_pictures_keep_their_contrast(modality: str) -> None:
    dark = torch.tensor([0, 51, 102], dtype=torch.uint8)
    torch.testing.assert_close(scale_intensity(dark, modality), torch.tensor([0.0, 0.2, 0.4]))


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(
    "array",
    [torch.zeros(3, 3), torch.full((3, 3), -7.0), torch.full((2, 2), float("nan")), torch.zeros(0)],
    ids=["zero", "constant", "nan", "empty"],
)
def test_degenerate_images_stay_finite(modality: str, array: torch.Tensor) -> None:
    scaled = scale_intensity(array, modality)
    assert scaled.dtype == torch.float32
    assert scaled.shape == array.shape
    assert torch.isfinite(scaled).all()
    assert ((scaled >= 0) & (scaled <= 1)).all()


def test_input_is_not_changed_and_metadata_stays() -> None:
    image = MetaTensor(torch.tensor([[-1000.0, 0.0]]), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    scaled = scale_intensity(image, "CT")
    assert image[0, 0] == -1000
    assert isinstance(scaled, MetaTensor)
    torch.testing.assert_close(scaled.affine, image.affine)


def test_dictionary_form_is_the_array_form() -> None:
    image = torch.rand(1, 5, 5)
    result = ScaleIntensityByModalityd(["image", "other"], "MR", allow_missing_keys=True)({"image": image, "id": "a"})
    torch.testing.assert_close(result["image"], scale_intensity(image, "MR"))
    assert result["id"] == "a"


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(UserError, match=r"one of CT, MR.*'NM'"):
        ScaleIntensityByModalityd("image", "NM")
    with pytest.raises(UserError, match="low < high"):
        scale_intensity(torch.zeros(2), "CT", (400, -500))
