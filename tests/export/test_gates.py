"""Each gate refuses what fails it, unless a person allows it; then the bundle says so."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from mmf_deploy.export import gates
from mmf_deploy.export.assemble import export_origin
from mmf_deploy.export.gates import GATES, LIMITS, failures, judge_variant, limits_of
from mmf_deploy.export.parity import Parity
from mmf_deploy.export.plan import Request

from mmf_deploy import bundle as bundles
from mmf_deploy.errors import ConfigError, ParityError
from mmf_deploy.spec import SampleSpec

IMAGE = SampleSpec(shape=(1, 8, 8))
VECTOR = SampleSpec(shape=(2,))
FINE = Parity(1e-4, 1e-5, 1, 74.0, 60.0, 2000, frechet=10.0, frechet_shift=0.01, same_class=1.0)
NAN = math.nan


def judged(precision, parity, spec=IMAGE, min_psnr=None, allowed=()):
    return judge_variant("mine", precision, parity, spec, min_psnr, allowed)


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("spec", [IMAGE, VECTOR], ids=["image", "vector"])
def test_what_holds_every_gate_is_accepted_without_exceptions(precision, spec):
    assert judged(precision, FINE, spec) == []


@pytest.mark.parametrize(
    ("gate", "precision", "changes", "said"),
    [
        ("max-error", "fp32", {"max_abs": 2e-3}, "differs from the checkpoint by up to 0.002"),
        ("max-error", "fp32", {"max_levels": 2}, r"2 of 255 levels\); allowed are 1 levels"),
        ("psnr", "fp32", {"psnr": 59.9}, "PSNR 59.9 dB; at least 60 dB"),
        ("psnr", "fp16", {"psnr": 39.9}, "PSNR 39.9 dB; at least 40 dB"),
        ("psnr", "bf16", {"psnr": 31.9}, "PSNR 31.9 dB; at least 32 dB"),
        ("psnr", "int8", {"psnr": 29.9}, "PSNR 29.9 dB; at least 30 dB"),
        ("rms", "fp32", {"rms": 2e-4}, r"root mean square difference 0\.0002; allowed are 0\.0001"),
        ("rms", "int8", {"rms": 0.11}, r"difference 0\.11; allowed are 0\.1"),
        ("worst-image", "fp32", {"psnr_worst": 44.9}, r"worst image 44\.9 dB; at least 45 dB"),
        ("worst-image", "int8", {"psnr_worst": 17.9}, r"worst image 17\.9 dB; at least 18 dB"),
        ("frechet", "int8", {"frechet_shift": 0.051}, r"shifted by 5\.1%; allowed are 5%"),
        ("classes", "fp16", {"same_class": 0.985}, r"same class in 98\.5% .* at least 99%"),
        ("max-error", "fp32", {"max_abs": NAN}, "by up to nan"),
        ("rms", "int8", {"rms": NAN}, "difference nan"),
        ("worst-image", "int8", {"psnr_worst": NAN}, "worst image nan"),
        ("psnr", "int8", {"psnr": NAN}, "PSNR nan"),
        ("frechet", "int8", {"frechet_shift": NAN}, "shifted by nan"),
        ("classes", "int8", {"same_class": NAN}, "same class in nan"),
    ],
)
def test_gate_refuses_what_fails_it_and_lets_it_pass_if_allowed(gate, precision, changes, said):
    parity = replace(FINE, **changes)
    with pytest.raises(ParityError, match=said) as caught:
        judged(precision, parity)
    message = str(caught.value)
    assert message.startswith("mine: ")
    assert "Nothing was written" in message
    assert f"--allow {gate} " in message
    (line,) = judged(precision, parity, allowed=(gate,))
    assert line.startswith(f"{gate}: ")
    # every other exception is of no help
    with pytest.raises(ParityError):
        judged(precision, parity, allowed=[name for name in GATES if name != gate])


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_largest_error_is_no_gate_of_a_reduced_precision(precision):
    assert judged(precision, replace(FINE, max_abs=1.9, max_levels=200)) == []


def test_limits_themselves_are_allowed():
    edge = Parity(1e-3, 1e-4, 1, 60.0, 45.0, 256, 10.0, frechet_shift=0.05, same_class=0.99)
    assert judged("fp32", edge) == []


def test_every_gate_that_fails_is_named_and_only_those_not_allowed_refuse():
    bad = replace(FINE, psnr=10.0, frechet_shift=0.5, same_class=0.1)
    with pytest.raises(ParityError, match="--allow psnr,frechet,classes ") as caught:
        judged("int8", bad)
    assert "higher --min-psnr" in str(caught.value)
    with pytest.raises(ParityError, match="--allow frechet,classes "):
        judged("int8", bad, allowed=("psnr",))
    assert len(judged("int8", bad, allowed=GATES)) == 3


def test_advice_to_quantise_less_is_for_int8_alone():
    with pytest.raises(ParityError) as caught:
        judged("fp16", replace(FINE, psnr=10.0))
    assert "--min-psnr" not in str(caught.value)


def test_without_a_judge_its_gates_are_not_asked():
    alone = replace(FINE, frechet=None, frechet_shift=None, same_class=None)
    assert failures(alone, LIMITS["int8"], IMAGE) == {}


def test_levels_are_for_images():
    assert judged("fp32", replace(FINE, max_levels=9), VECTOR) == []


def test_own_floor_replaces_that_of_reduced_precisions_alone():
    assert limits_of("fp32", 10.0) == LIMITS["fp32"]
    for precision in ("fp16", "bf16", "int8"):
        default = LIMITS[precision]
        assert limits_of(precision, None) == default
        # a higher floor asks more of the images together, a lower one less of each
        assert limits_of(precision, default.psnr + 5) == replace(default, psnr=default.psnr + 5)
        less = limits_of(precision, default.psnr - 20)
        assert (less.psnr, less.psnr_worst) == (default.psnr - 20, default.psnr_worst - 20)
        assert less.rms == pytest.approx(10 * default.rms)
    with pytest.raises(ParityError, match="at least 80 dB"):
        judged("int8", FINE, min_psnr=80.0)


def test_less_than_the_default_is_recorded_where_a_person_asked_for_it():
    noisy = replace(FINE, psnr=12.0, psnr_worst=5.0)
    assert judged("int8", noisy, min_psnr=11.0) == ["psnr: floor lowered from 30 to 11 dB"]
    assert judged("int8", FINE, min_psnr=35.0) == []
    assert judged("fp32", FINE, min_psnr=11.0) == []
    few = replace(FINE, samples=255)
    assert judged("fp32", few) == ["samples: 255 compared, not 256"]
    assert judged("fp32", replace(FINE, samples=256)) == []


def test_gate_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"--allow 'pnsr' \(did you mean 'psnr'\?\)"):
        gates.check_allowed(["psnr", "pnsr"])
    gates.check_allowed(GATES)


@pytest.fixture
def request_of(tmp_path):
    def make(**options):
        return Request(tmp_path, tmp_path / "bundles" / "mine", samples=16, **options)

    return make


def written(folder) -> list:
    return sorted(folder.rglob("*"))


def test_refused_export_writes_nothing_and_an_allowed_one_says_so_everywhere(
    request_of, convolutions, tmp_path
):
    web = {"targets": ("web",), "precisions": ("fp32", "fp16")}
    with pytest.raises(ParityError, match=r"web-fp16: PSNR .* at least 150 dB .* Nothing was"):
        export_origin(convolutions(), request_of(**web, min_psnr=150.0))
    assert written(tmp_path) == []
    request = request_of(**web, min_psnr=150.0, allow=("psnr",))
    bundle = export_origin(convolutions(), request)
    line, few = bundle.variant("web-fp16").exceptions
    assert line.startswith("psnr: PSNR ")
    assert bundle.variant("web-fp32").exceptions == [few]
    assert few == "samples: 16 compared, not 256"
    assert bundles.load(request.out).manifest == bundle.manifest
    assert f"- web-fp16: {line}\n" in (request.out / "README.md").read_text()


def test_rounding_alone_is_too_much_for_a_limit_of_nothing(
    request_of, origins, tmp_path, monkeypatch
):
    monkeypatch.setitem(LIMITS, "fp32", replace(LIMITS["fp32"], absolute=0.0))
    with pytest.raises(ParityError, match=r"fp32: differs from the checkpoint .* Nothing was"):
        export_origin(origins("vector"), request_of())
    assert written(tmp_path) == []
    bundle = export_origin(origins("vector"), request_of(allow=("max-error",)))
    assert bundle.variant().exceptions[0].startswith("max-error: ")


def test_existing_bundle_survives_a_refused_replacement(request_of, origins, tmp_path, monkeypatch):
    before = export_origin(origins("vector"), request_of())
    monkeypatch.setitem(LIMITS, "fp32", replace(LIMITS["fp32"], absolute=0.0))
    with pytest.raises(ParityError):
        export_origin(origins("vector"), request_of(force=True))
    assert bundles.load(before.path).digest == before.digest
    assert [p.name for p in (tmp_path / "bundles").iterdir()] == ["mine"]


def test_every_limit_is_of_a_gate():
    gates = {
        "absolute": "max-error",
        "levels": "max-error",
        "rms": "rms",
        "psnr": "psnr",
        "psnr_worst": "worst-image",
        "frechet_shift": "frechet",
        "same_class": "classes",
    }
    assert [f.name for f in fields(LIMITS["fp32"])] == list(gates)
    assert set(gates.values()) == set(GATES)
