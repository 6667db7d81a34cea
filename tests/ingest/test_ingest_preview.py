"""Previews: proportions, window and outlines."""

from __future__ import annotations

import numpy as np
import pytest

from lvmmed_monai.ingest.preview import CT_WINDOW_HU, PREVIEW_HEIGHT, label_colours, planar_preview, preview_image


def test_three_planes_with_true_proportions():
    image = preview_image(np.zeros((20, 40, 10), np.int16), (1.0, 0.5, 4.0), "CT")
    # axial 20 x 20 mm, then two planes of 20 mm by 40 mm of height
    assert image.size == (PREVIEW_HEIGHT + 2 * PREVIEW_HEIGHT // 2, PREVIEW_HEIGHT)


def test_ct_window():
    values = np.full((8, 8, 8), 1000, np.int16)
    values[:, :, :4] = -1000
    pixels = np.asarray(preview_image(values, (1, 1, 1), "CT"))
    assert pixels[:, :PREVIEW_HEIGHT].min() == 255  # the middle axial plane is bright
    assert pixels[-1, -1, 0] == 0  # feet are below
    middle = np.full((8, 8, 8), sum(CT_WINDOW_HU) / 2, np.float32)
    assert abs(int(np.asarray(preview_image(middle, (1, 1, 1), "CT"))[0, 0, 0]) - 127) <= 1


def test_other_modalities_use_percentiles():
    values = np.random.default_rng(0).uniform(0, 9000, (16, 16, 16)).astype(np.float32)
    pixels = np.asarray(preview_image(values, (1, 1, 1), "MR"))
    assert pixels.min() < 20
    assert pixels.max() > 235
    assert np.asarray(preview_image(np.zeros((4, 4, 4), np.float32), (1, 1, 1), "MR")).max() == 0


def test_labels_are_outlined_where_they_are_largest():
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, 4:12, 2] = 1
    labels[4:6, 4:6, 9] = 2
    pixels = np.asarray(preview_image(np.zeros((16, 16, 16), np.int16), (1, 1, 1), "CT", labels))
    axial = pixels[:, :PREVIEW_HEIGHT]
    coloured = (axial == label_colours(2)[1]).all(axis=-1)
    assert coloured.any()
    assert not coloured[PREVIEW_HEIGHT // 2, PREVIEW_HEIGHT // 2]  # outline only
    assert not (axial == label_colours(2)[2]).all(axis=-1).any()


def test_colours_differ():
    colours = label_colours(20)
    assert colours.shape == (21, 3)
    assert len({tuple(colour) for colour in colours.tolist()}) == 21
    assert colours[0].tolist() == [0, 0, 0]


class TestPlanar:
    def test_a_picture_with_true_proportions(self):
        image = planar_preview(np.zeros((1, 40, 20), np.uint16), (0.5, 2.0))
        assert image.size == (2 * PREVIEW_HEIGHT, PREVIEW_HEIGHT)
        assert planar_preview(np.zeros((1, 40, 20), np.uint16), None).size == (PREVIEW_HEIGHT // 2, PREVIEW_HEIGHT)

    def test_a_wide_picture_keeps_them_too(self):
        assert planar_preview(np.zeros((1, 10, 80), np.uint8), None).size == (512, 64)

    def test_grey_lies_between_percentiles(self):
        values = np.linspace(1000, 3000, 64 * 64).reshape(1, 64, 64).astype(np.uint16)
        values[0, 0, 0] = 65535
        pixels = np.asarray(planar_preview(values, None))
        assert abs(int(pixels[PREVIEW_HEIGHT // 2, PREVIEW_HEIGHT // 2]) - 127) <= 3
        assert pixels[-1, -1] == 255
        assert np.asarray(planar_preview(np.full((1, 8, 8), 9, np.uint8), None)).max() == 0

    def test_colours_as_they_are(self):
        frames = np.full((1, 16, 16, 3), (10, 200, 30), np.uint8)
        assert np.unique(np.asarray(planar_preview(frames, None)).reshape(-1, 3), axis=0).tolist() == [[10, 200, 30]]

    @pytest.mark.parametrize(("count", "shown"), [(2, [0, 1]), (4, [0, 1, 2, 3]), (30, [0, 10, 19, 29])])
    def test_frames_of_a_clip_from_first_to_last(self, count, shown):
        frames = np.repeat(np.arange(count, dtype=np.uint8), 16 * 16 * 3).reshape(count, 16, 16, 3)
        strip = np.asarray(planar_preview(frames, None))
        assert strip.shape == (PREVIEW_HEIGHT, len(shown) * PREVIEW_HEIGHT, 3)
        assert strip[5, 5::PREVIEW_HEIGHT, 0].tolist() == shown
