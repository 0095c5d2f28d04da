"""The seed contract: these numbers never change, and anyone can compute them anywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmf_deploy.errors import ShapeError
from mmf_deploy.noise import MAX_SEED, check_seed, gaussian, gaussian_batch, random_seed

WORDS = {
    0: [
        0x02F4BA6408E4D89B, 0x3DD62B0B9CA8C5B2, 0x1C8667A55D902E79, 0x907D7A052FD5B4DC,
        0x809BF322883987C3, 0x471128B9E807F7DD, 0xF250BA0DBEC065B7, 0xFC6ED66767A457BC,
    ],
    42: [
        0xD1F8817D4D62880E, 0x307266B65CC8797E, 0xDE1F04E7F084ED03, 0x65034A8E78CD1E59,
        0x5E3DAA8961C3E3D3, 0x6F37DEA4A04BD05C, 0x31D3A1AE26E190B9, 0x0FEF7FAE0AB2A01A,
    ],
    MAX_SEED: [
        0xED01AB40F6E3C032, 0x2E7B634ED9DE606D, 0x9E879E5FC056D40D, 0x7C88D0264F51764D,
        0xE341E7D9887DFE44, 0xFDC35617BBA21011, 0x557EC028CE30A12C, 0xA6A9AEC439E255BD,
    ],
}  # fmt: skip

NORMALS = [
    (0, (4,), [0.00808869581669569, 0.1521921306848526, -0.4468097388744354, -0.1914038062095642]),
    (1, (1, 2, 2), [0.49438774585723877, -0.692207396030426,
                       0.5715938210487366, 0.11316118389368057]),
    (42, (3,), [0.6901114583015442, 1.719170093536377, -1.5858830213546753]),
    (123456789, (2,), [-1.7410038709640503, 0.6850031018257141]),
    (MAX_SEED, (1, 5, 1), [0.9507198333740234, 2.073232889175415, -1.3846739530563354,
                           0.11806242913007736, 2.0881636142730713]),
]  # fmt: skip

WORD = 2**64


def philox4x64(counter: int, key: int) -> list[int]:
    """Ten rounds of Philox4x64 (Salmon et al. 2011) in Python integers."""
    c, k0, k1 = [counter % WORD, counter // WORD, 0, 0], key, 0
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], WORD)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], WORD)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0 = (k0 + 0x9E3779B97F4A7C15) % WORD
        k1 = (k1 + 0xBB67AE8584CAA73B) % WORD
    return c


def gaussian_by_hand(seed: int, count: int) -> list[float]:
    """The four steps of the module's docstring, without numpy."""
    words = [w for block in range(1, count // 4 + 2) for w in philox4x64(block, seed)]
    uniforms = [(w >> 11) * 2.0**-53 for w in words]
    normals = []
    for u, v in zip(uniforms[0::2], uniforms[1::2], strict=True):
        rho, theta = math.sqrt(-2 * math.log1p(-u)), 2 * math.pi * v
        normals += [rho * math.cos(theta), rho * math.sin(theta)]
    return normals[:count]


def assert_within_one_ulp(found, expected) -> None:
    np.testing.assert_array_max_ulp(found, np.asarray(expected, np.float32), maxulp=1)


def test_philox_by_hand_gives_the_published_known_answer():
    # Random123's kat_vectors: philox4x64, 10 rounds, counter 0, key 0
    published = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox4x64(0, 0) == published


@pytest.mark.parametrize("seed", WORDS)
def test_raw_words_of_a_seed_never_change(seed):
    assert np.random.Philox(key=seed).random_raw(8).tolist() == WORDS[seed]
    assert philox4x64(1, seed) + philox4x64(2, seed) == WORDS[seed]


@pytest.mark.parametrize(("seed", "shape", "values"), NORMALS)
def test_noise_of_a_seed_never_changes(seed, shape, values):
    found = gaussian(seed, shape)
    assert (found.dtype, found.shape) == (np.float32, shape)
    assert_within_one_ulp(found.ravel(), values)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 987654321987654321, MAX_SEED])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 7), (1,)])
def test_noise_can_be_computed_without_numpy_from_the_description_alone(seed, shape):
    expected = gaussian_by_hand(seed, math.prod(shape))
    assert_within_one_ulp(gaussian(seed, shape).ravel(), expected)


def test_sample_is_filled_in_channel_row_column_order():
    values = gaussian_by_hand(7, 2 * 3 * 4)
    assert_within_one_ulp(gaussian(7, (2, 3, 4))[1, 2, 3], values[-1])
    assert_within_one_ulp(gaussian(7, (2, 3, 4))[0, 1, 0], values[4])


def test_odd_count_is_the_start_of_the_even_one():
    np.testing.assert_array_equal(gaussian(5, (7,)), gaussian(5, (8,))[:7])


def test_noise_does_not_depend_on_batch_neighbours():
    seeds = [9, 3, 3, 2**40, 0]
    batch = gaussian_batch(seeds, (3, 4, 4))
    for row, seed in zip(batch, seeds, strict=True):
        np.testing.assert_array_equal(row, gaussian(seed, (3, 4, 4)))


def test_numpy_integers_are_seeds():
    np.testing.assert_array_equal(gaussian(np.int64(5), (3,)), gaussian(5, (3,)))


def test_many_samples_have_the_moments_of_independent_standard_normals():
    z = gaussian_batch(range(256), (1024,)).astype(np.float64)
    count = z.size
    # five standard errors of each estimate; z³ and z⁴ have variance 15 and 96
    assert abs(z.mean()) < 5 / math.sqrt(count)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / count)
    for a, b in ((z[:, 0::2], z[:, 1::2]), (z[:, :-1], z[:, 1:]), (z[:-1], z[1:])):
        assert abs((a * b).mean()) < 5 / math.sqrt(a.size)
    assert 4 < np.abs(z).max() < 8.58  # √(−2 ln 2⁻⁵³) bounds it


@pytest.mark.parametrize("seed", [True, 1.0, "1", None, np.bool_(True), np.float64(2), [1]])
def test_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(ShapeError, match=r"is not an integer; expected 0 … 9223372036854775807"):
        gaussian(seed, (2,))


@pytest.mark.parametrize("seed", [-1, 2**63, np.int64(-5), 2**64])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ShapeError, match=f"seed {seed} is out of range"):
        gaussian_batch([0, seed], (2,))


def test_limits_of_the_seed_range_are_seeds():
    assert check_seed(0) == 0
    assert check_seed(MAX_SEED) == 2**63 - 1


def test_batch_of_no_seeds_is_refused():
    with pytest.raises(ShapeError, match="no seeds"):
        gaussian_batch([], (2,))


def test_random_seeds_are_seeds_short_enough_to_be_read_aloud_and_differ():
    seeds = {random_seed() for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= check_seed(s) < 2**32 for s in seeds)
