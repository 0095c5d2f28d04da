"""The comparison: known differences give known numbers, over batches of every size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmf_deploy.export.fold import plain_sampler
from mmf_deploy.export.parity import Parity, compare, judged, psnr
from mmf_deploy.export.reference import reference, samples_to_compare

from mmf_deploy import bundle as bundles
from mmf_deploy.engines.base import Engine, Output
from mmf_deploy.errors import ParityError
from mmf_deploy.frechet import frechet_distance
from mmf_deploy.images import to_uint8
from mmf_deploy.nn.judge import Judge, layers
from mmf_deploy.spec import SampleSpec

IMAGE = SampleSpec(shape=(1, 8, 8))
VECTOR = SampleSpec(shape=(3,))


class Half(torch.nn.Module):
    """u = x / 2, so that the samples are half the noise."""

    def forward(self, x, r, t, label=None, guidance=None):
        return x / 2


class Off(Engine):
    """Half the noise, and a difference given by the test."""

    name = "off"

    def __init__(self, spec, difference=lambda sample: 0.0) -> None:
        variant = bundles.Variant(name="off", file="off.onnx", precision="fp32")
        source = bundles.Source(run="", step=0, weights="", weights_sha256="", parameters=0)
        manifest = bundles.Manifest(
            name="off", spec=spec, variants=[variant], source=source, recipe={}
        )
        super().__init__(bundles.Bundle(Path(), manifest, ""))
        self.difference = difference
        self.batches: list[int] = []

    def load(self) -> None: ...

    def close(self) -> None: ...

    def _run(self, noise, label, guidance) -> Output:
        self.batches.append(len(noise))
        sample = (noise / 2 + self.difference(noise)).astype(np.float32)
        return Output(sample, to_uint8(sample) if self.spec.is_image else None)


@pytest.fixture(scope="module")
def expected(make_origin):
    """``expected(spec, count)``: what PyTorch gives."""

    def make(spec, count=80):
        return reference(plain_sampler(make_origin(Half(), spec), 1), spec, count)

    return make


def test_equal_samples_have_no_difference_and_a_psnr_of_999(expected):
    parity, output = compare(Off(IMAGE), expected(IMAGE))
    assert parity == Parity(0.0, 0.0, 0, 999.0, 999.0, 80)
    assert output.sample.shape == (80, 1, 8, 8)
    assert output.image.shape == (80, 8, 8, 1)


@pytest.mark.parametrize(
    ("count", "batches"),
    [(80, [1, 2, 7, 64, 6]), (16, [1, 2, 7, 6]), (200, [1, 2, 7, 64, 64, 62])],
)
def test_batches_are_of_1_2_7_64_and_the_rest(count, batches, expected):
    engine, seen = Off(IMAGE), []
    parity, _ = compare(engine, expected(IMAGE, count), None, seen.append)
    assert engine.batches == batches == seen
    assert parity.samples == count


def test_known_difference_of_vectors_gives_its_psnr(expected):
    known = expected(VECTOR, 40)
    parity, _ = compare(Off(VECTOR, lambda noise: 0.25), known)
    assert (parity.max_abs, parity.rms) == pytest.approx((0.25, 0.25), rel=1e-5)
    assert parity.max_levels == 0
    peak = known.sample.max() - known.sample.min()
    assert parity.psnr == pytest.approx(20 * math.log10(peak / 0.25), abs=1e-4)
    assert parity.psnr_worst == pytest.approx(parity.psnr, abs=1e-4)


def test_known_difference_of_images_gives_levels_and_psnr_of_bytes(expected):
    known = expected(IMAGE)
    # one pixel of one image by about ten levels; its value is inside the range
    seed, pixel = 40, (0, 3, 3)
    assert abs(known.sample[seed][pixel]) < 0.9

    def difference(noise):
        found = np.zeros_like(noise)
        found[np.all(noise == known.inputs.noise[seed], axis=(1, 2, 3)), 0, 3, 3] = 10 / 127.5
        return found

    parity, _ = compare(Off(IMAGE, difference), known)
    assert parity.max_levels == 10
    assert parity.max_abs == pytest.approx(10 / 127.5, rel=1e-5)
    assert parity.rms == pytest.approx(10 / 127.5 / math.sqrt(80 * 64), rel=1e-5)
    assert parity.psnr == pytest.approx(10 * math.log10(255**2 / (100 / (80 * 64))))
    assert parity.psnr_worst == pytest.approx(10 * math.log10(255**2 / (100 / 64)))


def test_difference_beyond_white_is_seen_in_the_samples_alone(expected):
    known = expected(IMAGE)
    parity, _ = compare(Off(IMAGE, lambda noise: np.where(noise > 2, 5.0, 0.0)), known)
    assert parity.max_abs == pytest.approx(5.0, rel=1e-5)
    assert (parity.max_levels, parity.psnr) == (0, 999.0)


@pytest.mark.parametrize(
    ("square", "peak", "known"), [(1, 255, 48.1308), (0.04, 2, 20.0), (0, 1, 999)]
)
def test_psnr_is_the_peak_over_the_noise_in_decibels(square, peak, known):
    assert psnr(square, peak) == pytest.approx(known, abs=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_value_that_is_not_finite_is_refused(value, expected):
    def difference(noise):
        return np.where(np.arange(len(noise)) == 5, value, 0).reshape(-1, 1)

    with pytest.raises(ParityError, match=r"off\.onnx: batch 7: values that are not finite"):
        compare(Off(VECTOR, difference), expected(VECTOR))


def test_network_that_is_not_finite_itself_is_refused(expected):
    known = expected(VECTOR)
    sample = known.sample.copy()
    sample[11] = np.nan
    with pytest.raises(ParityError, match="not finite"):
        compare(Off(VECTOR), replace(known, sample=sample))


def test_output_of_another_shape_is_refused_with_both(expected):
    known = expected(VECTOR)
    with pytest.raises(ParityError, match=r"shape \(1, 3\), expected \(1, 4\)"):
        compare(Off(VECTOR), replace(known, sample=np.zeros((80, 4), np.float32)))


def test_numbers_of_the_manifest_have_three_digits_and_leave_out_what_was_not_measured():
    parity = Parity(0.00123456, 1e-8 / 3, 7, 41.23456, 38.98765, 80)
    assert parity.as_dict() == {"max_abs": 0.00123, "rms": 3.33e-09, "max_levels": 7,
                                "psnr": 41.23, "psnr_worst": 38.99, "samples": 80}  # fmt: skip
    full = replace(parity, frechet=12.3456, frechet_shift=0.0123456, same_class=0.98765)
    assert full.as_dict().items() >= {
        "frechet": 12.3, "frechet_shift": 0.0123, "same_class": 0.988}.items()  # fmt: skip


@pytest.fixture(scope="module")
def judge():
    """Not trained: what it sees is arbitrary, and the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        body, head = layers()
    body, head = body.eval().requires_grad_(False), head.eval().requires_grad_(False)
    judge = Judge(body, head, 0.9, np.zeros(64), np.eye(64))
    real = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
    features = judge(real)[1].astype(np.float64)
    return replace(judge, real_mean=features.mean(0), real_covariance=np.cov(features.T)), real


def test_shift_of_the_frechet_distance_is_relative_and_classes_are_counted(judge, expected):
    judge, real = judge
    before = expected(IMAGE, 200).image
    after = before.copy()
    after[:30] = real[:30]
    frechet, shift, same = judged(judge, before, after)
    real_features = judge(real)[1]
    distances = [frechet_distance(judge(images)[1], real_features) for images in (before, after)]
    assert frechet == pytest.approx(distances[1], rel=1e-6)
    assert shift == pytest.approx(abs(distances[1] - distances[0]) / distances[0], rel=1e-6)
    assert same == (judge(before)[0] == judge(after)[0]).mean()
    assert shift > 0
    assert 0 < same < 1


def test_equal_images_have_no_shift_and_equal_classes(judge, expected):
    parity, _ = compare(Off(IMAGE), expected(IMAGE), judge[0])
    assert (parity.frechet_shift, parity.same_class) == (0.0, 1.0)
    assert parity.frechet > 0


def test_without_a_judge_or_images_nothing_is_judged(judge, expected):
    image = expected(IMAGE).image
    for asked in ((None, image, image), (judge[0], None, None), (judge[0], image[:1], image[:1])):
        assert judged(*asked) == (None, None, None)


def test_reference_takes_consecutive_seeds_with_labels_in_turn_and_guidance_over_its_range(
    convolutions,
):
    origin = convolutions(3, (1.0, 4.0))
    seen = []
    found = reference(plain_sampler(origin, 1), origin.spec, 70, seen.append)
    assert (len(found), seen) == (70, [32, 32, 6])
    assert found.inputs.label.tolist() == [k % 3 for k in range(70)]
    np.testing.assert_allclose(found.inputs.guidance, np.linspace(1, 4, 70), rtol=1e-6)
    np.testing.assert_array_equal(found.image, to_uint8(found.sample))
    # a sample depends on its seed, label and scale, not on the chunk that it came in
    inputs = {k: v[40:45] for k, v in found.inputs.tensors().items()}
    with torch.no_grad():
        alone = plain_sampler(origin, 1)(**inputs)[0]
    np.testing.assert_allclose(found.sample[40:45], alone.numpy(), atol=1e-5)


def test_small_images_are_compared_over_2000_seeds_and_large_ones_over_256():
    assert samples_to_compare(SampleSpec(shape=(1, 32, 32)), None) == 2000
    assert samples_to_compare(SampleSpec(shape=(3, 32, 32)), None) == 256
    assert samples_to_compare(IMAGE, 17) == 17
