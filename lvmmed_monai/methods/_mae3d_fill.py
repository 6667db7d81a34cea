"""Answers to masked autoencoding that need no learning: what a network must beat."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

__all__ = ["fill_in", "mean_of_visible"]


# Of the Gaussian weights, in sigmas.
_REACH = 8.0


def fill_in(image: Tensor, visible: Tensor, sigma: float) -> Tensor:
    """Every voxel as the mean of the visible voxels around it (normalised convolution, Knutsson and Westin 1993).

    Args:
        image: (N, C, X, Y, Z).
        visible: (N, 1, X, Y, Z), bool.
        sigma: of the Gaussian weights, in voxels. What is visible nowhere within 8 sigma becomes the mean.
    """
    shown = visible.numpy().astype(np.float64)
    smooth = (0, 0, sigma, sigma, sigma)
    weight = gaussian_filter(shown, smooth, mode="constant", truncate=_REACH)
    total = gaussian_filter(image.numpy() * shown, smooth, mode="constant", truncate=_REACH)
    near = torch.from_numpy(total / np.maximum(weight, np.finfo(np.float64).tiny)).to(image.dtype)
    return torch.where(torch.from_numpy(weight > 0), near, mean_of_visible(image, visible))


def mean_of_visible(image: Tensor, visible: Tensor) -> Tensor:
    """Every voxel as the mean of the visible ones of its image and channel; 0 without any. Arguments as `fill_in`."""
    weight = visible.to(image.dtype)
    mean = (image * weight).sum((2, 3, 4), keepdim=True) / weight.sum((2, 3, 4), keepdim=True).clamp_min(1)
    return mean.expand_as(image)
