"""Positions, labels and augmentations of crops against the published numbers and plain slicing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lvmmed_monai.errors import UserError
from lvmmed_monai.transforms.crops_3d import (
    BlockAugmentation,
    CropAugmentation,
    augment_crop,
    base_centers,
    body_shares,
    cut_crops,
    draw_block_augmentation,
    draw_centers,
    draw_crop_augmentation,
    draw_sizes,
    orient_block,
    overlap_along,
    overlap_labels,
    render_block,
    source_size,
)

# centre, grid, edge, {base: share}
KNOWN_LABELS = [
    ((32, 32), 3, 64, {0: 1.0}),
    ((96, 96), 3, 64, {4: 1.0}),
    ((64, 64), 3, 64, {0: 0.25, 1: 0.25, 3: 0.25, 4: 0.25}),
    ((48, 80), 3, 64, {0: 0.1875, 1: 0.5625, 3: 0.0625, 4: 0.1875}),
    ((128, 32), 3, 64, {3: 0.5, 6: 0.5}),
    ((160, 159), 3, 64, {7: 0.015625, 8: 0.984375}),
    ((100, 33), 3, 64, {3: 0.92285156, 4: 0.01464844, 6: 0.06152344, 7: 0.00097656}),
    ((48, 48), 4, 96, {0: 1.0}),
    ((96, 96), 4, 96, {0: 0.25, 1: 0.25, 4: 0.25, 5: 0.25}),
    ((192, 192), 4, 96, {5: 0.25, 6: 0.25, 9: 0.25, 10: 0.25}),
    ((72, 120), 4, 96, {0: 0.1875, 1: 0.5625, 4: 0.0625, 5: 0.1875}),
    ((200, 61), 4, 96, {4: 0.36024306, 5: 0.05642361, 8: 0.50434028, 9: 0.07899306}),
]


class TestLabels:
    @pytest.mark.parametrize(("center", "grid", "edge", "shares"), KNOWN_LABELS)
    def test_point_01_known_answers(
        self, center: tuple[int, int], grid: int, edge: int, shares: dict[int, float]
    ) -> None:
        expected = torch.zeros(grid * grid)
        for base, share in shares.items():
            expected[base] = share
        torch.testing.assert_close(overlap_labels(torch.tensor(center), grid, edge), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("grid", "edge"), [(3, 64), (4, 96), ((2, 3), 12)])
    def test_point_01_rows_sum_to_one(self, grid: int | tuple[int, int], edge: int) -> None:
        centers = draw_centers(np.random.default_rng(0), 1000, grid, edge)
        labels = overlap_labels(centers.view(10, 100, 2), grid, edge)
        assert labels.shape[:2] == (10, 100)
        torch.testing.assert_close(labels.sum(-1), torch.ones(10, 100), rtol=0, atol=1e-6)

    def test_equals_counting_voxels(self) -> None:
        edge, grid = 6, (3, 2)
        owner = torch.arange(6).view(3, 2).repeat_interleave(edge, 0).repeat_interleave(edge, 1)
        for x, y in draw_centers(np.random.default_rng(1), 50, grid, edge).tolist():
            inside = owner[x - 3 : x + 3, y - 3 : y + 3]
            counted = torch.bincount(inside.ravel(), minlength=6) / edge**2
            torch.testing.assert_close(overlap_labels(torch.tensor([x, y]), grid, edge), counted)

    def test_layers_equal_counting_voxels(self) -> None:
        edge, grid = 4, (3, 2, 2)
        owner = torch.arange(12).view(grid)
        for axis in range(3):
            owner = owner.repeat_interleave(edge, axis)
        for x, y, z in draw_centers(np.random.default_rng(1), 50, grid, edge).tolist():
            inside = owner[x - 2 : x + 2, y - 2 : y + 2, z - 2 : z + 2]
            counted = torch.bincount(inside.ravel(), minlength=12) / edge**3
            center = torch.tensor([x, y, z])
            torch.testing.assert_close(overlap_labels(center, grid, edge), counted)
            axial, depth = overlap_labels(center[:2], grid[:2], edge), overlap_along(center[2], 2, edge)
            torch.testing.assert_close((axial[:, None] * depth).flatten(), counted)

    def test_share_of_a_scaled_crop_is_of_its_own_area(self) -> None:
        edge, grid = 8, (3, 3)
        owner = torch.arange(9).view(grid).repeat_interleave(edge, 0).repeat_interleave(edge, 1)
        random = np.random.default_rng(2)
        sizes = draw_sizes(random, 60, edge, (0.5, 1.5))
        centers = draw_centers(random, 60, grid, edge, sizes=sizes)
        labels = overlap_labels(centers, grid, edge, sizes=sizes)
        for (x, y), size, label in zip(centers.tolist(), sizes.tolist(), labels, strict=True):
            half = size // 2
            inside = owner[x - half : x + half, y - half : y + half]
            assert inside.numel() == size**2
            torch.testing.assert_close(label, torch.bincount(inside.ravel(), minlength=9) / size**2)

    def test_grid_and_centres_must_have_as_many_axes(self) -> None:
        with pytest.raises(UserError, match="2 numbers, the grid 3"):
            overlap_labels(torch.tensor([4, 4]), (2, 2, 2), 4)

    def test_mean_label_over_all_centres(self) -> None:
        x = torch.arange(32, 160)
        labels = overlap_labels(torch.cartesian_prod(x, x))
        mean = labels.mean(0).view(3, 3)
        assert mean[0, 0] == pytest.approx(0.0625, abs=2e-3)
        assert mean[0, 1] == pytest.approx(0.125, abs=2e-3)
        assert mean[1, 1] == pytest.approx(0.25, abs=2e-3)
        assert float((labels == 0).float().mean()) == pytest.approx(0.562, abs=1e-3)
        assert int((labels == 1).any(1).sum()) == 4


class TestCenters:
    def test_point_02_published_draws(self) -> None:
        drawn = draw_centers(np.random.RandomState(0), 5)
        assert drawn.tolist() == [[76, 79], [149, 96], [99, 155], [99, 135], [41, 115]]
        drawn = draw_centers(np.random.RandomState(0), 5, 4, 96)
        assert drawn.tolist() == [[220, 95], [165, 240], [299, 243], [57, 259], [325, 290]]

    def test_point_03_base_order(self) -> None:
        assert base_centers(3, 64).tolist() == [[32 + 64 * (k // 3), 32 + 64 * (k % 3)] for k in range(9)]
        labels = overlap_labels(base_centers(4, 96), 4, 96)
        assert torch.equal(labels, torch.eye(16))

    def test_stays_inside(self) -> None:
        drawn = draw_centers(np.random.default_rng(0), 2000, (2, 1), 8)
        assert drawn[:, 0].min() == 4
        assert drawn[:, 0].max() == 11
        assert drawn[:, 1].unique().tolist() == [4]

    def test_layers(self) -> None:
        expected = [[4 * i + 2, 4 * j + 2, 4 * k + 2] for i in range(3) for j in range(2) for k in range(2)]
        assert base_centers((3, 2, 2), 4).tolist() == expected
        assert torch.equal(overlap_labels(base_centers((3, 2, 2), 4), (3, 2, 2), 4), torch.eye(12))
        drawn = draw_centers(np.random.default_rng(0), 500, (3, 2, 2), 4)
        assert (drawn.amin(0) >= 2).all()
        assert (drawn.amax(0) <= torch.tensor([10, 6, 6])).all()

    def test_sizes(self) -> None:
        assert draw_sizes(np.random.default_rng(0), 3, 24, (1, 1)).tolist() == [24, 24, 24]
        sizes = draw_sizes(np.random.default_rng(0), 2000, 24, (0.5, 1.5))
        assert (sizes % 2 == 0).all()
        assert (int(sizes.min()), int(sizes.max())) == (12, 36)
        centers = draw_centers(np.random.default_rng(0), 2000, 3, 24, sizes=sizes)
        assert (centers - sizes[:, None] // 2).min() >= 0
        assert (centers + sizes[:, None] // 2).max() <= 72
        with pytest.raises(UserError, match="does not fit"):
            draw_centers(np.random.default_rng(0), 1, (3, 1), 8, sizes=torch.tensor([10]))

    def test_refuses_odd_edges_and_impossible_grids(self) -> None:
        with pytest.raises(UserError, match="even"):
            draw_centers(np.random.default_rng(0), 1, 3, 7)
        with pytest.raises(UserError, match="grid"):
            base_centers((3, 0), 8)


class TestCrops:
    def test_base_crops_are_slices_of_the_block(self) -> None:
        block = torch.rand(2, 12, 8, 5)
        crops = cut_crops(block, base_centers((3, 2), 4), 4)
        for i in range(3):
            for j in range(2):
                assert torch.equal(crops[i * 2 + j], block[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4])

    def test_point_03_a_crop_at_a_base_centre_is_the_base_crop(self) -> None:
        block = torch.rand(1, 24, 24, 8)
        bases = cut_crops(block, base_centers(3, 8), 8)
        assert torch.equal(cut_crops(block, torch.tensor([[12, 20]]), 8)[0], bases[5])

    def test_refuses_to_leave_the_block(self) -> None:
        with pytest.raises(UserError, match="reaches out"):
            cut_crops(torch.rand(1, 24, 24, 8), torch.tensor([[3, 12]]), 8)

    def test_layers_are_cut_along_z(self) -> None:
        block = torch.rand(2, 8, 8, 12)
        crops = cut_crops(block, base_centers((2, 2, 3), 4), 4)
        for number, crop in enumerate(crops):
            i, j, k = number // 6, number // 3 % 2, number % 3
            assert torch.equal(crop, block[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 4 * k : 4 * k + 4])

    def test_scaled_crops_show_their_piece(self) -> None:
        ramp = torch.arange(24.0).view(1, 24, 1, 1).expand(1, 24, 24, 24)
        crops = cut_crops(ramp, torch.tensor([[12, 12, 12], [6, 12, 12]]), 8, sizes=torch.tensor([16, 4]))
        assert crops.shape == (2, 1, 8, 8, 8)
        # The middles of the resampled voxels: half of a voxel in from each end of the piece.
        torch.testing.assert_close(crops[0, 0, :, 3, 3], 4 + 2 * (torch.arange(8) + 0.5) - 0.5)
        assert crops[1, 0, :, 3, 3].mean() == pytest.approx(5.5)

    def test_body_shares_of_layers(self) -> None:
        block = torch.zeros(1, 4, 4, 4)
        block[:, :2, 2:, 2:] = 1
        assert body_shares(block, (2, 2, 2)).tolist() == [0, 0, 0, 1, 0, 0, 0, 0]

    def test_body_shares(self) -> None:
        block = torch.zeros(1, 8, 8, 4)
        block[:, :4, :4] = 1
        block[:, 4:, 4:6] = 0.5
        assert body_shares(block, 2).tolist() == [1.0, 0.0, 0.0, 0.5]


class TestCropAugmentation:
    def test_order_of_the_steps(self) -> None:
        crop = torch.rand(1, 4, 4, 3)
        done = augment_crop(crop, CropAugmentation((True, False, True), 1, 0.05))
        expected = np.rot90(crop.numpy()[:, ::-1, :, ::-1], 1, (1, 2)) + np.float32(0.05)
        np.testing.assert_array_equal(done.numpy(), expected)
        assert augment_crop(crop, CropAugmentation()) is crop

    def test_rates(self) -> None:
        random = np.random.default_rng(0)
        drawn = [draw_crop_augmentation(random) for _ in range(4000)]
        flips = np.array([one.flip for one in drawn]).mean(0)
        assert np.abs(flips - 0.2).max() < 0.025
        turns = np.array([one.quarter_turns for one in drawn])
        assert abs((turns > 0).mean() - 0.2) < 0.025
        assert set(turns) == {0, 1, 2, 3}
        shifts = np.array([one.shift for one in drawn])
        assert abs((shifts != 0).mean() - 0.5) < 0.03
        assert 0.09 < np.abs(shifts).max() <= 0.1

    def test_no_mirroring_where_sides_matter(self) -> None:
        random = np.random.default_rng(0)
        assert not any(any(draw_crop_augmentation(random, mirror=False).flip) for _ in range(200))


class TestBlockAugmentation:
    def test_identity(self) -> None:
        piece = torch.rand(1, 6, 6, 2)
        plain = BlockAugmentation()
        assert source_size((6, 6, 2), plain) == (6, 6, 2)
        assert torch.equal(render_block(orient_block(piece, plain), (6, 6, 2), plain), piece)

    def test_axis_order_and_size_belong_together(self) -> None:
        turned = BlockAugmentation(order=(2, 0, 1), flip=(False, True, False), zoom=0.8)
        size = source_size((12, 8, 4), turned)
        assert size == (10, 5, 15)
        piece = torch.rand(1, *size)
        block = orient_block(piece, turned)
        np.testing.assert_array_equal(block.numpy(), piece.numpy().transpose(0, 3, 1, 2)[:, :, ::-1])
        assert render_block(block, (12, 8, 4), turned).shape == (1, 12, 8, 4)

    def test_grey_values(self) -> None:
        piece = torch.linspace(0, 1, 27).view(1, 3, 3, 3)
        changed = render_block(piece, (3, 3, 3), BlockAugmentation(window=(0.1, 0.9), gamma=2.0))
        expected = (((piece - 0.1) / 0.8).clamp(0, 1)) ** 2
        torch.testing.assert_close(changed, expected)

    def test_ranges(self) -> None:
        random = np.random.default_rng(0)
        ct = [draw_block_augmentation(random, modality="CT") for _ in range(500)]
        assert {one.order for one in ct} == {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}
        assert all(0.8 <= one.zoom <= 1.25 and one.gamma == 1.0 for one in ct)
        assert all(-0.1 <= one.window[0] <= 0.1 and 0.9 <= one.window[1] <= 1.1 for one in ct)
        mr = [draw_block_augmentation(random, modality="MR") for _ in range(500)]
        assert min(one.gamma for one in mr) < 0.8
        assert max(one.gamma for one in mr) > 1.3

    def test_rotations_only_where_sides_matter(self) -> None:
        random = np.random.default_rng(0)
        for _ in range(200):
            one = draw_block_augmentation(random, modality="CT", mirror=False)
            turned = np.linalg.det(np.eye(3)[list(one.order)])
            assert turned == pytest.approx(1.0)
            assert not any(one.flip)
