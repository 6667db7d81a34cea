"""What a scanner adds: blur, correlated noise, bias field, rounding."""

from __future__ import annotations

import numpy as np

__all__ = ["ct_scan", "mr_scan"]

# Sharpness of the reconstruction, as standard deviation in voxels, in plane and across slices.
_PLANE_BLUR, _SLICE_BLUR = 0.42, 0.35


def ct_scan(values: np.ndarray, inside: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Blur and noise of a CT.

    Args:
        values: (x, y, z) HU without noise.
        inside: (x, y, z) distance to the skin in millimetres, negative inside; noise grows with depth,
            where fewer photons arrive.
        noise: standard deviation in the middle of the body (HU).
        rng: gives the noise.

    Returns:
        (x, y, z) int16 HU, -1024 to 3071.
    """
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(values, (_PLANE_BLUR, _PLANE_BLUR, _SLICE_BLUR), mode="nearest")
    white = rng.standard_normal(values.shape, dtype=np.float32)
    # Filtered back-projection: grain of two pixels, poor in low frequencies.
    grain = gaussian_filter(white, (0.55, 0.55, 0.25)) - 0.75 * gaussian_filter(white, (1.4, 1.4, 0.25))
    grain *= noise / max(float(grain.std()), 1e-6)
    depth = np.clip(-inside / 90.0, 0.0, 1.0)
    blurred += grain * (0.45 + 0.55 * depth)
    return np.clip(np.rint(blurred), -1024, 3071).astype(np.int16)


def mr_scan(values: np.ndarray, bias: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Blur, coil sensitivity and Rician noise of an MR magnitude image.

    Args:
        values: (x, y, z) signal without noise, 0 and up.
        bias: (x, y, z) factor of the coil's sensitivity.
        noise: standard deviation of each channel.
        rng: gives the noise.

    Returns:
        (x, y, z) int16, 0 to 4095.
    """
    from scipy.ndimage import gaussian_filter

    signal = gaussian_filter(values * bias, (0.45, 0.45, 0.3), mode="nearest")
    real = signal + noise * rng.standard_normal(values.shape, dtype=np.float32)
    imaginary = noise * rng.standard_normal(values.shape, dtype=np.float32)
    return np.clip(np.rint(np.hypot(real, imaginary)), 0, 4095).astype(np.int16)
