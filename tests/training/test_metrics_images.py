"""Features and distances of images, corruptions and the steadiness of training."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from mmf_deploy.training.metrics.corruptions import BLUR, CORRUPTIONS, NOISE, SEVERITIES
from mmf_deploy.training.metrics.features import InceptionFeatures, JudgeFeatures
from mmf_deploy.training.metrics.perceptual import FeatureDistance, Lpips
from mmf_deploy.training.metrics.stability import read_log, rolling_variance, variation

from mmf_deploy.errors import CheckpointError, ConfigError
from mmf_deploy.frechet import frechet_distance
from mmf_deploy.nn.judge import Judge, layers


def some_images(count, size=32, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), np.uint8)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alexnet(weights=None).state_dict(), path)
    return path


def test_lpips_is_zero_between_equal_images_and_grows_with_the_difference(alexnet):
    lpips = Lpips(alexnet)
    images = some_images(5)
    nearly = images.copy()
    nearly[:, :2] ^= 8
    assert lpips(images, images) == pytest.approx(np.zeros(5))
    assert (lpips(images, nearly) > 0).all()
    assert (lpips(images, 255 - images) > lpips(images, nearly)).all()


def test_lpips_takes_grey_and_small_images_and_is_symmetric(alexnet):
    a, b = some_images(3, 8, 1), some_images(3, 8, 1, seed=1)
    lpips = Lpips(alexnet)
    assert lpips(a, b).shape == (3,)
    assert lpips(a, b) == pytest.approx(lpips(b, a))


def test_weights_that_are_missing_or_another_networks_are_one_line(alexnet, tmp_path):
    for build, option in ((Lpips, "--alexnet-weights"), (InceptionFeatures, "--inception-weights")):
        with pytest.raises(ConfigError, match=f"{option} .*no such file"):
            build(tmp_path / "nothing.pth")
        (tmp_path / "text.pth").write_text("not weights")
        with pytest.raises(ConfigError, match=option):
            build(tmp_path / "text.pth")
    with pytest.raises(ConfigError, match="not their file"):
        InceptionFeatures(alexnet)
    assert torch.hub.get_dir().endswith("hub")


@pytest.mark.slow  # the network alone takes most of it
def test_inception_features_give_the_fid_of_torchmetrics(tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    # a file of random weights in the form of the published one
    path = tmp_path / "inception.pth"
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save({}, path)
        blank = FeatureExtractorInceptionV3("blank", ["2048"], str(path))
    torch.save(blank.state_dict(), path)
    features = InceptionFeatures(path)
    fake, real = some_images(12), some_images(12, seed=1)
    assert features(fake).shape == (12, 2048)
    assert features(fake[..., :1]).shape == (12, 2048)
    metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(path))
    for images, is_real in ((fake, False), (real, True)):
        metric.update(torch.from_numpy(images).permute(0, 3, 1, 2), real=is_real)
    expected = float(metric.compute())
    assert frechet_distance(features(fake), features(real)) == pytest.approx(expected, rel=1e-3)


def test_distances_in_a_judges_features_are_euclidean():
    torch.manual_seed(0)
    body, head = layers()
    judge = Judge(body.eval(), head.eval(), 1.0, np.zeros(64), np.eye(64))
    distance = FeatureDistance(JudgeFeatures(judge))
    a, b = some_images(4, 8, 1), some_images(4, 8, 1, seed=1)
    assert distance(a, a) == pytest.approx(np.zeros(4))
    assert distance(a, b) == pytest.approx(np.linalg.norm(judge(a)[1] - judge(b)[1], axis=1))


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_shape_and_range_and_grows(name, size):
    x = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    x = x + torch.linspace(-0.7, 0.7, size)  # brighter to the right
    changes = []
    for severity in SEVERITIES:
        changed = CORRUPTIONS[name](x, severity)
        assert changed.shape == x.shape
        assert changed.abs().max() <= 1
        changes.append(float((changed - x).square().mean()))
    assert all(later >= earlier > 0 for earlier, later in pairwise(changes))


def test_corruptions_are_what_they_say():
    x = torch.zeros(1, 1, 64, 64)
    # half of the width of [0, 1] images is the whole of [-1, 1] ones
    assert float(CORRUPTIONS["noise"](x, 3).std()) == pytest.approx(2 * NOISE[2], rel=0.05)
    assert torch.equal(CORRUPTIONS["inversion"](x + 0.3, 5), -(x + 0.3))
    step = torch.cat([torch.zeros(1, 1, 16, 8), torch.ones(1, 1, 16, 8)], dim=3)
    assert torch.equal(CORRUPTIONS["shift"](step, 2)[..., 2:], step[..., :-2])
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    spread = CORRUPTIONS["blur"](point, 5)[0, 0, 16]
    place = torch.arange(33) - 16.0
    assert float((spread / spread.sum() * place**2).sum()) == pytest.approx(BLUR[4] ** 2, rel=0.05)


def test_the_rolling_variance_of_noise_is_its_variance_and_of_a_line_its_windows():
    noise = np.random.default_rng(0).normal(scale=3, size=20_000)
    assert rolling_variance(noise, 50).mean() == pytest.approx(9, rel=0.05)
    # 0, 1, …, w − 1 has the unbiased variance w (w + 1)/12
    assert rolling_variance(np.arange(100.0), 10) == pytest.approx(np.full(91, 10 * 11 / 12))
    with pytest.raises(ValueError, match="window"):
        rolling_variance([1.0, 2.0], 3)


def test_the_variation_is_relative_and_zero_for_a_constant():
    assert variation([4.0, 4.0, 4.0]) == 0
    assert variation([1.0, 3.0]) == variation([10.0, 30.0]) == pytest.approx(0.5)


def test_a_log_is_read_as_columns_and_what_is_none_is_refused(tmp_path):
    rows = [
        {"step": 10, "loss": 1.0, "squared_error": 2.0, "gradient_norm": 3.0},
        {"step": 20, "loss": None, "squared_error": 4.0, "gradient_norm": 5.0},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    log = read_log(tmp_path)
    assert log["squared_error"].tolist() == [2, 4]
    assert np.isnan(log["loss"][1])
    with pytest.raises(CheckpointError, match="not the log of a run"):
        read_log(tmp_path / "nothing")
