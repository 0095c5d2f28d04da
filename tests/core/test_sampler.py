"""The sampler against the one field whose samples are known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mmf_deploy.errors import ConfigError
from mmf_deploy.images import to_uint8
from mmf_deploy.nn.sampler import Sampler, quantise, time_grid

STD = 0.3


class GaussianField(nn.Module):
    """The exact average velocity of data N(0, s²): x (1 − σ_r/σ_t)/(t − r)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, float]] = []

    def forward(self, x, r, t, label=None, guidance=None):
        self.calls.append((float(r), float(t)))
        ratio = self.sigma(r) / self.sigma(t)
        return x * ((1 - ratio) / (t - r))

    @staticmethod
    def sigma(t):
        return torch.sqrt((1 - t) ** 2 * STD**2 + t**2)


class Recorder(nn.Module):
    """u = 0.25 x + label + guidance, and a note of what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def forward(self, x, r, t, label=None, guidance=None):
        self.calls.append((r.tolist(), t.tolist(), label, guidance))
        return 0.25 * x + label[:, None] + guidance[:, None]


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_exact_gaussian_field_gives_the_same_samples_in_any_number_of_steps(steps, noise):
    field = GaussianField()
    sampler = Sampler(field, time_grid(steps), is_image=False).double()
    (sample,) = sampler(noise)
    torch.testing.assert_close(sample, STD * noise, rtol=1e-12, atol=0)
    assert field.calls == [((steps - k - 1) / steps, (steps - k) / steps) for k in range(steps)]


def test_every_point_of_the_path_has_the_std_of_its_time(noise):
    sampler = Sampler(GaussianField(), (1.0, 0.75, 0.5, 0.0), is_image=False).double()
    points = sampler.trajectory(noise)
    for point, t in zip(points, (1.0, 0.75, 0.5, 0.0), strict=True):
        sigma = math.sqrt((1 - t) ** 2 * STD**2 + t**2)
        torch.testing.assert_close(point, sigma * noise, rtol=1e-12, atol=0)


def test_one_step_is_the_noise_minus_the_velocity_from_one_to_zero(noise):
    net = Recorder()
    x1 = noise.float()
    label, guidance = torch.arange(64), torch.linspace(1, 2, 64)
    (sample,) = Sampler(net, is_image=False)(x1, label, guidance)
    expected = x1 - net(x1, torch.zeros(64), torch.ones(64), label, guidance)
    torch.testing.assert_close(sample, expected, rtol=0, atol=0)
    r, t, given_label, given_guidance = net.calls[0]
    assert (r, t) == ([0.0], [1.0])
    assert given_label is label
    assert given_guidance is guidance


def test_image_is_the_bytes_of_the_sample():
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randn(3, 3, 4, 4, generator=generator)
    sample, image = Sampler(GaussianField())(x1)
    assert (image.shape, image.dtype) == ((3, 4, 4, 3), torch.uint8)
    np.testing.assert_array_equal(image.numpy(), to_uint8(sample.numpy()))


def test_quantisation_equals_that_of_the_images_module_at_every_half_level_and_beyond():
    # each level, each border between two levels, and their neighbours in float32
    levels = np.arange(-4, 516, dtype=np.float32) / 2
    x = levels / np.float32(127.5) - np.float32(1)
    x = np.concatenate([x, np.nextafter(x, np.float32(-9)), np.nextafter(x, np.float32(9))])
    x = x.astype(np.float32).reshape(3, 1, 20, 26)
    found = quantise(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, to_uint8(x))
    assert (found.min(), found.max(), len(np.unique(found))) == (0, 255, 256)


def test_times_move_with_the_sampler_but_are_no_weights():
    sampler = Sampler(GaussianField(), time_grid(2))
    assert sampler.state_dict() == {}
    assert sampler.to("meta").t1.device.type == "meta"


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_uniform_grid_falls_from_one_to_zero(steps):
    grid = time_grid(steps)
    assert (len(grid), grid[0], grid[-1]) == (steps + 1, 1.0, 0.0)
    np.testing.assert_allclose(np.diff(grid), -1 / steps, rtol=1e-12)
    Sampler(GaussianField(), grid)


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(steps):
    with pytest.raises(ConfigError, match="expected 1 or more"):
        time_grid(steps)


@pytest.mark.parametrize(
    "grid",
    [(), (1.0,), (0.0, 1.0), (1.0, 0.1), (0.9, 0.0), (1.0, 0.3, 0.6, 0.0), (1.0, 0.5, 0.5, 0.0),
     (1.0, 1.0, 0.0), (1.0, math.nan, 0.0), (1.0, -0.5, 0.0)],
)  # fmt: skip
def test_grid_that_does_not_fall_from_one_to_zero_is_refused(grid):
    with pytest.raises(ConfigError, match="expected falling times from 1 to 0"):
        Sampler(GaussianField(), grid)
