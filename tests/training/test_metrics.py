"""Metrics against cases whose answer is known."""

import numpy as np
import pytest
import torch
from mmf_deploy.training.data import digits
from mmf_deploy.training.evaluate import evaluate_digits

from mmf_deploy.errors import ShapeError
from mmf_deploy.frechet import frechet_distance, gaussian_frechet


def test_frechet_of_commuting_gaussians_has_its_closed_form():
    mean_a, mean_b = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    var_a, var_b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(var_a) - np.sqrt(var_b)) ** 2).sum()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    found = gaussian_frechet(
        rotation @ mean_a,
        rotation @ np.diag(var_a) @ rotation.T,
        rotation @ mean_b,
        rotation @ np.diag(var_b) @ rotation.T,
    )
    assert found == pytest.approx(expected)


def test_frechet_of_gaussians_that_do_not_commute_equals_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    a, b = (m @ m.T for m in rng.normal(size=(2, 5, 5)))
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(a @ b).real)
    zero = np.zeros(5)
    assert gaussian_frechet(zero, a, zero, b) == pytest.approx(expected)


def test_frechet_of_a_set_with_itself_is_zero_and_of_samples_tends_to_the_truth():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(20_000, 4)), rng.normal(size=(20_000, 4)) * 2 + 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a, b) == pytest.approx(4 * 1 + 4 * 1, rel=0.03)


def test_frechet_of_degenerate_features_is_finite():
    constant = np.ones((10, 3))
    assert frechet_distance(constant, constant + 2) == pytest.approx(12)


def test_frechet_refuses_mismatched_features():
    with pytest.raises(ShapeError, match=r"expected \[N, D\]"):
        frechet_distance(np.zeros((10, 3)), np.zeros((10, 4)))


@pytest.fixture(scope="module")
def real():
    source = digits.load(digits.Config())
    everything = source.batch(torch.arange(len(source)))
    images = ((everything.x0 + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return images, everything.label.numpy()


def test_real_digits_score_like_real_digits(real):
    # each "sample" is another real digit of the class asked for
    images, labels = real
    rng = np.random.default_rng(0)
    pools = [rng.permutation(np.flatnonzero(labels == k)) for k in range(10)]
    taken = [0] * 10
    chosen = np.empty(len(labels), int)
    for k, label in enumerate(labels):
        chosen[k] = pools[label][taken[label]]
        taken[label] += 1
    quality = evaluate_digits(lambda seeds, asked: images[chosen])
    assert quality.classifier_accuracy >= 0.97
    assert quality.class_accuracy >= 0.99
    assert quality.ratio == pytest.approx(1.0, abs=0.35)


def test_noise_and_a_single_repeated_digit_score_badly(real):
    images, _ = real
    rng = np.random.default_rng(0)
    noise = evaluate_digits(lambda seeds, asked: rng.integers(0, 256, images.shape, np.uint8))
    assert noise.class_accuracy < 0.3
    assert noise.ratio > 20
    first = np.array([int(np.flatnonzero(real[1] == k)[0]) for k in range(10)])
    # right class every time, no diversity: accuracy is blind to it, the distance is not
    repeated = evaluate_digits(lambda seeds, asked: images[first[asked]])
    assert repeated.class_accuracy > 0.95
    assert repeated.ratio > 5
