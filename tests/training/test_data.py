"""The sources of training data."""

import pytest
import torch
from mmf_deploy.training.config import load_config
from mmf_deploy.training.data import SOURCES

OPTIONS = {
    "digits": [],
    "noise": ["data={source: noise, shape: [3, 16, 16], classes: 4}", "evaluate=null"],
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_gives_batches_that_fit_its_spec(name):
    source = load_config("digits", OPTIONS[name]).load_data()
    indices = torch.tensor([0, len(source) - 1, 0])
    batch = source.batch(indices)
    assert batch.x0.dtype == torch.float32
    assert batch.x0.shape == (3, *source.spec.shape)
    assert -1 <= batch.x0.min() < batch.x0.max() <= 1
    assert torch.equal(batch.x0[0], batch.x0[2])
    assert (batch.label is not None) == source.spec.conditional
    if batch.label is not None:
        assert batch.label.dtype == torch.int64
        assert 0 <= batch.label.min() <= batch.label.max() < source.spec.classes


def test_digits_are_the_real_ones():
    source = load_config("digits").load_data()
    assert len(source) == 1797
    everything = source.batch(torch.arange(1797))
    assert torch.bincount(everything.label).min() > 170
    # the first image of the set is a zero: dark in the middle, bright around
    zero = everything.x0[0, 0]
    assert int(everything.label[0]) == 0
    assert zero[3:5, 3].max() < 0 < zero[3, 2]
