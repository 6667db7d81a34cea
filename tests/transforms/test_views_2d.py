from __future__ import annotations

import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from lvmmed_monai.errors import UserError
from lvmmed_monai.transforms.views_2d import ViewParameters, ViewSettings, apply_view, draw_view, location_grids

PLAIN = ViewParameters((0, 0, 32, 32), False, 1.0, 1.0, 1.0, 0.0, False, 0.0)


def changed(**values: object) -> ViewParameters:
    return ViewParameters(**{**PLAIN.__dict__, **values})  # type: ignore[arg-type]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_plain_view_is_the_image(image: torch.Tensor) -> None:
    torch.testing.assert_close(apply_view(image, PLAIN, 32), image)
    levels = (image * 255).round().to(torch.uint8)
    torch.testing.assert_close(apply_view(levels, PLAIN, 32), levels / 255)


def test_box_and_flip(image: torch.Tensor) -> None:
    view = apply_view(image, changed(box=(4, 8, 16, 16), flip=True), 16)
    torch.testing.assert_close(view, image[:, 4:20, 8:24].flip(-1))


def test_colour_changes_one_by_one() -> None:
    torch.manual_seed(1)
    image = 0.3 + 0.2 * torch.rand(3, 8, 8)
    grey = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * image).sum(0)

    def view(**values: object) -> torch.Tensor:
        return apply_view(image, changed(box=(0, 0, 8, 8), **values), 8)

    torch.testing.assert_close(view(brightness=1.3), 1.3 * image)
    torch.testing.assert_close(view(contrast=1.5), 1.5 * (image - grey.mean()) + grey.mean())
    torch.testing.assert_close(view(grey=True), grey.expand(3, 8, 8))
    torch.testing.assert_close(view(saturation=0.0), grey.expand(3, 8, 8), atol=2e-3, rtol=0)
    torch.testing.assert_close(view(saturation=1.5), grey + 1.5 * (image - grey), atol=2e-3, rtol=0)


def test_hue_turns_the_colour_circle() -> None:
    image = torch.tensor([0.6, 0.4, 0.4]).view(3, 1, 1).expand(3, 4, 4)
    turned = apply_view(image, changed(box=(0, 0, 4, 4), hue=1 / 3), 4)[:, 0, 0].tolist()
    before, after = colorsys.rgb_to_hsv(0.6, 0.4, 0.4)[0], colorsys.rgb_to_hsv(*turned)[0]
    assert abs((after - before) % 1.0 - 1 / 3) < 0.08 or abs((before - after) % 1.0 - 1 / 3) < 0.08


def test_grey_images_get_brightness_and_contrast() -> None:
    image = torch.rand(1, 16, 16) * 0.2 + 0.4
    view = apply_view(image, changed(box=(0, 0, 16, 16), brightness=1.2, contrast=0.5, hue=0.1, grey=True), 16)
    torch.testing.assert_close(view, 1.2 * (0.5 * (image - image.mean()) + image.mean()))


def test_blur_is_a_normalised_gaussian() -> None:
    image = torch.zeros(1, 33, 33)
    image[0, 16, 16] = 1
    view = apply_view(image, changed(box=(0, 0, 33, 33), sigma=2.0), 33)[0]
    x = torch.arange(33) - 16.0
    kernel = torch.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / 8)
    torch.testing.assert_close(view, kernel / kernel.sum(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", [0.05, 0.6, 2.24])
@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_a_convolution_with_repeated_borders(sigma: float, channels: int) -> None:
    image = torch.rand(channels, 40, 40, generator=torch.Generator().manual_seed(2))
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(image[:, None], (radius,) * 4, mode="replicate")
    expected = functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]
    view = apply_view(image, changed(box=(0, 0, 40, 40), sigma=sigma), 40)
    torch.testing.assert_close(view, expected, atol=2e-6, rtol=0)


def test_solarise_inverts_what_is_bright(image: torch.Tensor) -> None:
    view = apply_view(image, changed(solarise=True), 32)
    torch.testing.assert_close(view, torch.minimum(image, 1 - image).where(image > 0.5, image))
    rng = np.random.default_rng(0)
    drawn = [draw_view(rng, 9, 9, ViewSettings(solarise=0.3)).solarise for _ in range(400)]
    assert 80 < sum(drawn) < 160
    # Settings without it draw what they always drew.
    first, second = (draw_view(np.random.default_rng(3), 50, 60, ViewSettings(solarise=p)) for p in (0.0, 0.5))
    assert not first.solarise
    assert replace(second, solarise=False) == first


def test_forced_grey_and_small_views(image: torch.Tensor) -> None:
    settings = ViewSettings(grey=0.0, force_grey=True, small_views=2, small_size=8)
    for one in (settings, settings.small()):
        parameters = draw_view(np.random.default_rng(1), 32, 32, one)
        view = apply_view(image, parameters, one.size)
        assert view.shape == (3, one.size, one.size)
        torch.testing.assert_close(view[0], view[1])
        torch.testing.assert_close(view[0], view[2])
    small = settings.small()
    assert (small.size, small.area, small.small_views) == (8, settings.small_area, 0)


def test_views_stay_in_range_and_boxes_in_the_image() -> None:
    rng = np.random.default_rng(0)
    settings = ViewSettings(size=16)
    areas = []
    for height, width in ((40, 20), (5, 90), (1, 1)):
        image = torch.rand(3, height, width)
        for _ in range(50):
            parameters = draw_view(rng, height, width, settings)
            top, left, high, wide = parameters.box
            assert 0 <= top <= top + high <= height
            assert 0 <= left <= left + wide <= width
            assert high >= 1 <= wide
            view = apply_view(image, parameters, 16)
            assert view.shape == (3, 16, 16)
            assert view.dtype == torch.float32
            assert 0 <= float(view.min()) <= float(view.max()) <= 1
            areas.append(high * wide / (height * width))
    assert min(areas[:50]) < 0.5


def test_same_generator_state_draws_the_same_view() -> None:
    draws = [draw_view(np.random.default_rng(3), 50, 60, ViewSettings()) for _ in range(2)]
    assert draws[0] == draws[1]
    assert draws[0] != draw_view(np.random.default_rng(4), 50, 60, ViewSettings())


def test_images_with_sides_are_never_mirrored() -> None:
    rng = np.random.default_rng(0)
    assert not any(draw_view(rng, 9, 9, ViewSettings(flip=1.0), flip_safe=False).flip for _ in range(20))
    assert draw_view(rng, 9, 9, ViewSettings(flip=1.0)).flip


def test_grid_names_the_place_that_a_position_shows() -> None:
    # An image whose pixels hold their own coordinates: cell averages of a view must be its grid.
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    image = torch.stack([rows, columns, rows]) / 100
    for flip in (False, True):
        parameters = changed(box=(8, 16, 32, 48), flip=flip)
        view = apply_view(image, parameters, 32)[:2] * 100
        cells = functional.avg_pool2d(view, 8).permute(1, 2, 0)
        grid = location_grids(parameters.location()[None], 4, 4)[0]
        torch.testing.assert_close(cells, grid, atol=0.5, rtol=0)


@pytest.mark.parametrize("cells", [(2, 2), (4, 7), (7, 7)])
@pytest.mark.parametrize("size", [28, 56])
def test_each_cell_of_a_drawn_view_carries_its_own_coordinates(cells: tuple[int, int], size: int) -> None:
    # Brute force: the mean place of the pixels that each cell of a view shows, for many drawn views.
    height, width = 60, 90
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.stack([rows, columns, rows]) / 100
    rng = np.random.default_rng(5)
    settings = ViewSettings(size=size, jitter=0.0, grey=0.0, blur=0.0)
    mirrored = 0
    for _ in range(20):
        parameters = draw_view(rng, height, width, settings)
        view = 100 * apply_view(image, parameters, size)[:2]
        grid = location_grids(parameters.location()[None], *cells)[0]
        found = functional.adaptive_avg_pool2d(view, cells).permute(1, 2, 0)
        # Borders are repeated where a view is enlarged, which moves the outermost cells by part of a pixel.
        torch.testing.assert_close(found, grid, atol=0.4, rtol=0)
        assert bool((grid[0, 0, 1] > grid[0, -1, 1]) == parameters.flip)
        mirrored += parameters.flip
    assert 0 < mirrored < 20


def test_mirrored_grid_has_equal_coordinates_at_mirrored_positions() -> None:
    plain = changed(box=(3, 5, 20, 30)).location()
    mirrored = changed(box=(3, 5, 20, 30), flip=True).location()
    grids = location_grids(torch.stack([plain, mirrored]), 7, 7)
    torch.testing.assert_close(grids[1].flip(1), grids[0])


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UserError, match="area"):
        ViewSettings(area=(0.0, 1.0))
    with pytest.raises(UserError, match="view size 0"):
        ViewSettings(size=0)
    with pytest.raises(UserError, match=r"small view size 96, area \(0\.5, 0\.3\)"):
        ViewSettings(small_area=(0.5, 0.3))
    with pytest.raises(UserError, match="small_views = -1"):
        ViewSettings(small_views=-1)
