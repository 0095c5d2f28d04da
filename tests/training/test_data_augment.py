"""Augmentation: what each parameter does to an image, and what the network is told of it."""

import math

import pytest
import torch
from mmf_deploy.training.data import augment
from mmf_deploy.training.data.augment import AugmentConfig

from mmf_deploy.errors import ShapeError


def drawn(batch=4000, seed=0, **options):
    torch.manual_seed(seed)
    return augment.draw(AugmentConfig(**options), batch)


def chosen(scale=0.0, stretch=0.0, angle=0.0, shift=(0.0, 0.0), flip=0.0):
    """Parameters of one image: log2 factors, an angle, and a shift in sides."""
    labels = torch.tensor(
        [[flip, scale, stretch * math.cos(angle), stretch * math.sin(angle), *shift]]
    )
    linear = augment._linear(*(torch.tensor([v]) for v in (scale, stretch, angle)))
    return augment.AugmentParameters(labels, linear, torch.tensor([shift]))


def images(batch=1, height=16, width=16):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def blob(height=32, width=32, x=0.0, y=0.0, std=(3.0, 3.0)):
    """A Gaussian spot at (x, y) pixels from the centre, on black."""
    rows = torch.arange(height)[:, None] - (height - 1) / 2 - y
    columns = torch.arange(width) - (width - 1) / 2 - x
    spot = torch.exp(-0.5 * ((columns / std[0]) ** 2 + (rows / std[1]) ** 2))
    return (2 * spot - 1)[None, None]


def moments(image):
    """Centre (x, y) and widths (x, y) of a spot, in pixels from the centre of the image."""
    weight = (image[0, 0] + 1) / (image[0, 0] + 1).sum()
    height, width = weight.shape
    rows = torch.arange(height)[:, None] - (height - 1) / 2
    columns = torch.arange(width)[None] - (width - 1) / 2
    x, y = float((weight * columns).sum()), float((weight * rows).sum())
    wide = float((weight * (columns - x) ** 2).sum().sqrt())
    return (x, y), (wide, float((weight * (rows - y) ** 2).sum().sqrt()))


def test_probability_zero_leaves_every_bit_and_gives_zero_labels():
    parameters = drawn(8, probability=0.0)
    x0 = images(8)
    after, labels = augment.apply(parameters, x0)
    assert torch.equal(after, x0)
    assert labels.shape == (8, augment.LABELS)
    assert labels.dtype == torch.float32
    assert not labels.any()


def test_each_transformation_comes_as_often_as_it_says():
    often = (drawn(20000, probability=0.12, flip=0.5).labels != 0).float().mean(0)
    assert often[:3].tolist() == pytest.approx([0.5, 0.12, 0.12], abs=0.01)
    assert often[3:].tolist() == pytest.approx([0.06, 0.12, 0.12], abs=0.01)


def test_labels_are_in_units_of_the_standard_deviation():
    labels = drawn(20000, probability=1.0).labels
    assert labels[:, [1, 4, 5]].std(0).tolist() == pytest.approx([1, 1, 1], rel=0.03)
    stretch = labels[:, 2:4].norm(dim=1)
    assert stretch.square().mean().sqrt() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize(
    ("key", "columns"),
    [("flip", [0]), ("scale", [1]), ("anisotropy", [2, 3]), ("translate", [4, 5])],
)
def test_a_strength_of_zero_turns_one_transformation_off(key, columns):
    labels = drawn(probability=1.0, **{key: 0.0}).labels
    others = [c for c in range(augment.LABELS) if c not in columns]
    assert not labels[:, columns].any()
    assert labels[:, others].any(dim=0).all()


def test_as_many_numbers_are_drawn_whatever_the_values():
    after = []
    for options in ({}, {"probability": 0.0}, {"flip": 0.0, "scale": 0.0}):
        drawn(16, **options)
        after.append(torch.rand(1))
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])


def test_slices_of_the_parameters_give_slices_of_the_result():
    parameters, x0 = drawn(16, probability=0.5), images(16)
    after, labels = augment.apply(parameters, x0)
    for rows in (slice(0, 5), torch.tensor([3, 11])):
        some, told = augment.apply(parameters[rows], x0[rows])
        assert torch.allclose(some, after[rows], atol=1e-6)
        assert torch.equal(told, labels[rows])


def test_an_untouched_image_among_others_keeps_its_bits_and_so_does_the_input():
    parameters, x0 = drawn(200), images(200)
    before = x0.clone()
    after, labels = augment.apply(parameters, x0)
    assert torch.equal(x0, before)
    untouched = ~labels.any(dim=1)
    assert 40 < int(untouched.sum()) < 100
    assert torch.equal(after[untouched], x0[untouched])
    assert (after[~untouched] != x0[~untouched]).flatten(1).any(dim=1).all()
    assert after.abs().max() <= 1


def test_mirroring_is_exact_and_twice_is_nothing():
    x0 = images()
    once, labels = augment.apply(chosen(flip=1.0), x0)
    assert torch.equal(once, x0.flip(3))
    assert labels.tolist() == [[1, 0, 0, 0, 0, 0]]
    assert torch.equal(augment.apply(chosen(flip=1.0), once)[0], x0)


def test_a_shift_by_whole_pixels_moves_them_and_mirrors_the_edge():
    x0 = images(height=16, width=32)
    after, _ = augment.apply(chosen(shift=(3 / 32, -2 / 16)), x0)
    assert torch.allclose(after[..., :14, 3:], x0[..., 2:, :29], atol=1e-4)
    assert torch.allclose(after[..., :14, 0:3], x0[..., 2:, 0:3].flip(3), atol=1e-4)


def test_scaling_widens_around_the_centre():
    after, _ = augment.apply(chosen(scale=0.5), blob(x=2, y=-1))
    centre, widths = moments(after)
    factor = 2**0.5
    assert centre == pytest.approx((2 * factor, -factor), abs=0.1)
    assert widths == pytest.approx((3 * factor, 3 * factor), rel=0.02)


def test_stretching_widens_one_axis_and_narrows_the_other_and_the_shift_comes_after():
    parameters = chosen(stretch=0.4, shift=(4 / 48, 0.0))
    centre, widths = moments(augment.apply(parameters, blob(32, 48))[0])
    assert widths == pytest.approx((3 * 2**0.4, 3 / 2**0.4), rel=0.02)
    assert centre == pytest.approx((4, 0), abs=0.1)


@pytest.mark.parametrize("width", [48, 32])
def test_a_stretch_at_an_angle_is_the_same_in_images_that_are_not_square(width):
    turned = chosen(stretch=0.4, angle=math.pi / 2)
    _, widths = moments(augment.apply(turned, blob(32, width))[0])
    assert widths == pytest.approx((3 / 2**0.4, 3 * 2**0.4), rel=0.02)
    diagonal = augment.apply(chosen(stretch=0.6, angle=math.pi / 4), blob(32, width))[0]
    middle = width // 2
    # counter-clockwise as seen: bright towards the top right
    assert diagonal[0, 0, 10, middle + 5] > diagonal[0, 0, 10, middle - 6] + 0.4


def test_what_is_drawn_is_what_the_labels_say():
    torch.manual_seed(3)
    config = AugmentConfig(probability=1.0, flip=0.0, anisotropy=0.0)
    parameters = augment.draw(config, 1)
    _, scale, *_, right, down = parameters.labels[0].tolist()
    centre, widths = moments(augment.apply(parameters, blob(96, 96))[0])
    assert widths == pytest.approx([3 * 2 ** (0.2 * scale)] * 2, rel=0.02)
    assert centre == pytest.approx((0.125 * 96 * right, 0.125 * 96 * down), abs=0.1)


@pytest.mark.parametrize("shape", [(4, 2), (3, 1, 8, 8)])
def test_what_is_no_batch_of_that_many_images_is_refused(shape):
    with pytest.raises(ShapeError, match="augmentation of 4 images got"):
        augment.apply(drawn(4), torch.zeros(shape))
