"""Floats to bytes, encodings and grids."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmf_deploy.errors import ShapeError
from mmf_deploy.images import (
    MEDIA_TYPES,
    display_scale,
    encode,
    grid,
    save_grid,
    to_pil,
    to_uint8,
)


def pixels(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 1, 1, -1)


def decode(data: bytes) -> tuple[np.ndarray, str | None]:
    image = Image.open(io.BytesIO(data))
    array = np.asarray(image)
    return (array[:, :, None] if array.ndim == 2 else array), image.format


@pytest.fixture
def smooth_rgb() -> np.ndarray:
    """uint8 [24, 16, 3]: a gradient, which lossy formats keep well."""
    row, column = np.mgrid[0:24, 0:16]
    return np.stack([row * 10, column * 15, 255 - row * 10], axis=2).astype(np.uint8)


def test_ends_and_middle_of_the_range_become_bytes():
    assert to_uint8(pixels(-1, 0, 1)).ravel().tolist() == [0, 128, 255]


def test_values_outside_the_range_are_clamped():
    assert to_uint8(pixels(-1.5, 1.0001, -np.inf, 1e30)).ravel().tolist() == [0, 255, 0, 255]


def test_rounding_is_half_to_even():
    # 127.5 (x + 1) of these is exactly 0.5, 1.5 … in float32
    halves = [k + 0.5 for k in range(255)]
    x = np.array([h / 127.5 - 1 for h in halves], np.float32)
    exact = ((x + np.float32(1)) * np.float32(127.5)) == np.array(halves, np.float32)
    assert exact.sum() > 50
    expected = np.array([round(h) for h in halves], np.uint8)
    np.testing.assert_array_equal(to_uint8(x.reshape(1, 1, 1, -1)).ravel()[exact], expected[exact])


def test_every_byte_survives_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8)
    x = levels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(to_uint8(x.reshape(1, 1, 16, 16)).ravel(), levels)


def test_channels_move_last():
    sample = np.linspace(-1, 1, 2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    found = to_uint8(sample)
    assert (found.shape, found.dtype) == ((2, 4, 5, 3), np.uint8)
    assert found.flags.c_contiguous
    assert found[1, 2, 3, 0] == to_uint8(sample[1:, :1, 2:3, 3:4]).item()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_encoded_image_comes_back_through_pillow(kind, channels, smooth_rgb):
    image = np.ascontiguousarray(smooth_rgb[:, :, :channels])
    found, name = decode(encode(image, kind, quality=95))
    assert name == kind.upper()
    assert found.shape[:2] == image.shape[:2]
    difference = np.abs(found[:, :, :channels].astype(int) - image)
    assert difference.max() == 0 if kind == "png" else difference.mean() < 6


def test_quality_makes_lossy_files_larger(smooth_rgb):
    for kind in ("jpeg", "webp"):
        assert len(encode(smooth_rgb, kind, quality=95)) > len(encode(smooth_rgb, kind, quality=5))


def test_png_of_the_same_image_has_the_same_bytes(smooth_rgb):
    assert encode(smooth_rgb) == encode(smooth_rgb.copy())


@pytest.mark.parametrize("kind", ["gif", "PNG", ""])
def test_unknown_format_is_refused_with_the_known_ones(kind, smooth_rgb):
    with pytest.raises(ShapeError, match="expected one of png, jpeg, webp"):
        encode(smooth_rgb, kind)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_array_that_is_no_image_is_refused(image):
    with pytest.raises(ShapeError, match=r"expected uint8 \[H, W, 1 or 3\]"):
        to_pil(image)


def test_grid_puts_each_image_in_its_place_on_white():
    images = np.stack([np.full((3, 4, 1), 10 * k, np.uint8) for k in range(5)])
    found = grid(images)
    assert found.shape == (2 * 5 + 2, 3 * 6 + 2, 1)
    for k in range(5):
        top, left = 2 + 5 * (k // 3), 2 + 6 * (k % 3)
        assert (found[top : top + 3, left : left + 4] == 10 * k).all()
    ground = found.astype(int).sum() - sum(10 * k * 12 for k in range(5))
    assert ground == 255 * (found.size - 5 * 12)


def test_grid_of_given_columns_and_scale_enlarges_pixels_to_blocks():
    images = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    found = grid(images, columns=1, scale=3)
    assert found.shape == (2 * 8 + 2, 8 + 2, 3)
    np.testing.assert_array_equal(found[2:8:3, 2:8:3], images[0])
    np.testing.assert_array_equal(found[10:16:3, 2:8:3], images[1])


@pytest.mark.parametrize("shape", [(8, 8, 1), (0, 8, 8, 1), (2, 2, 8, 8, 1)])
def test_grid_of_something_else_is_refused(shape):
    with pytest.raises(ShapeError, match=r"expected uint8 \[B, H, W, C\]"):
        grid(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(("height", "scale"), [(8, 8), (32, 2), (64, 1), (512, 1)])
def test_small_images_are_enlarged_for_the_eye(height, scale):
    assert display_scale(height) == scale


def test_saved_grid_is_a_png_of_the_enlarged_images_and_nothing_else_is_left(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    path = tmp_path / "new" / "samples.png"
    save_grid(path, images, columns=3)
    found, name = decode(path.read_bytes())
    assert name == "PNG"
    np.testing.assert_array_equal(found, grid(images, columns=3, scale=8))
    assert [p.name for p in path.parent.iterdir()] == ["samples.png"]


def test_grid_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    path = tmp_path / "samples.png"
    path.write_bytes(b"old")
    with pytest.raises(ShapeError):
        save_grid(path, np.zeros((2, 8, 8, 2), np.uint8))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("samples.png", b"old")]
