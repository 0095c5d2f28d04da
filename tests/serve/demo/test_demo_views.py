"""What each view says of what the backend gives."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import re

import numpy as np
import pytest
from mmf_deploy.serve.demo import (
    permalink,
    view_compare,
    view_generate,
    view_interpolate,
    view_latency,
    view_trajectory,
)
from mmf_deploy.serve.demo.asked import Asked, counts, frame_range, sentence
from PIL import Image

from mmf_deploy.errors import BusyError, RequestError, ServiceError, UnreachableError
from mmf_deploy.spec import SampleSpec
from tests.serve.demo.conftest import about, offer

MEASURED = {
    "latency": {
        "fp32": {"batch1_ms": 0.5, "on": "onnxruntime on cpu"},
        "fp32-4step": {"batch1_ms": 2.0, "on": "onnxruntime on cpu"},
    },
    "pytorch": {"1": 4.0, "4": 16.0},
    "machine": {"cpu": "a CPU", "cores": "2"},
    "versions": {"torch": "2.15", "numpy": "2"},
}


def asked(**changes) -> Asked:
    return Asked(**{"seed": 7, "count": 4, "end": 9, "steps": 1, "model": "fp32"} | changes)


def shown(render, backend, wanted) -> str:
    return asyncio.run(render(backend, wanted))


def text(content) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", content))


# Generate


def test_generate_shows_the_time_beside_pytorch_s(toy):
    found = text(shown(view_generate.render, toy(measured=MEASURED), asked()))
    assert "8.00 ms for 4 images, 2.00 ms an image, one network evaluation each" in found
    assert "fp32, onnxruntime 2.00 ms an image PyTorch eager 4.00 ms an image" in found
    assert "measured at export on a CPU, 2 cores" in found
    assert "queue 0.25 · engine 8.00 · encoding 0.50 ms" in found


def test_generate_compares_with_pytorch_at_the_same_number_of_steps(toy):
    found = text(shown(view_generate.render, toy(measured=MEASURED), asked(steps=4, count=1)))
    assert "8.00 ms for 1 image, 4 network evaluations" in found
    assert "PyTorch eager 16.0 ms" in found


@pytest.mark.parametrize(
    "measured", [{}, {"pytorch": {"1": "fast"}}, {"pytorch": []}, {"pytorch": {"1": -1}}]
)
def test_a_bundle_without_measurements_says_so(toy, measured):
    found = text(shown(view_generate.render, toy(measured=measured), asked()))
    assert "This bundle does not say what PyTorch takes." in found


def test_generate_asks_for_exactly_what_was_chosen(toy):
    backend = toy()
    shown(view_generate.render, backend, asked(label=2, guidance=1.5, steps=2, model="int8"))
    assert backend.asked == [
        {"what": "generate", "n": 4, "seed": 7, "label": 2, "guidance": 1.5, "steps": 2,
         "model": "int8"}
    ]  # fmt: skip


# Compare

TWO = (offer(), offer("int8"))


def test_compare_needs_two_variants_and_says_how_to_get_them(toy):
    found = shown(view_compare.render, toy(), asked())
    assert "toy has one variant (fp32)" in found
    assert "mmf-export CHECKPOINT --precision fp32,int8" in found
    found = shown(view_compare.render, toy(where="http://127.0.0.1:8000"), asked())
    assert "This service makes images with one variant (fp32)" in found
    assert "mmf demo BUNDLE" in found


@pytest.mark.parametrize(
    ("size", "most", "frames"), [(8, 64, 48), (64, 64, 48), (256, 16, 32), (2048, 1, 2)]
)
def test_large_images_come_in_smaller_numbers(size, most, frames):
    found = about(SampleSpec(shape=(3, size, size)))
    assert counts(found)[-1] == most
    assert frame_range(found)[1] == frames


def test_compare_measures_the_difference_on_the_same_seeds(toy):
    backend = toy({"int8": 5}, offers=TWO)
    found = text(shown(view_compare.render, backend, asked()))
    assert [(a["seed"], a["n"]) for a in backend.asked] == [(7, 8), (7, 8)]
    assert f"{20 * math.log10(255 / 5):.1f} dB PSNR at most 5 of 255 levels apart" in found
    assert "amplified ×32" in found  # 5 · 64 would be beyond white


def test_the_difference_image_is_amplified_as_it_says(toy):
    content = shown(view_compare.render, toy({"int8": 5}, offers=TWO), asked())
    loud = re.findall(r'src="data:image/png;base64,([^"]+)" alt="difference', content)
    assert len(loud) == 8
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(loud[0]))))
    assert (pixels == 160).all()


def test_equal_images_are_called_identical(toy):
    assert "identical bytes" in text(shown(view_compare.render, toy(offers=TWO), asked()))


def test_compare_takes_the_nearest_number_of_steps_that_a_variant_has(toy):
    backend = toy(offers=(offer(steps=(1, 2, 4)), offer("int8")))
    shown(view_compare.render, backend, asked(steps=4))
    assert [a["steps"] for a in backend.asked] == [4, 1]


@pytest.mark.parametrize(
    ("largest", "times"), [(0, 64), (1, 64), (3, 64), (4, 32), (8, 16), (100, 2), (200, 1)]
)
def test_amplification_keeps_the_largest_difference_below_white(largest, times):
    assert view_compare.amplification([np.array([0, largest], np.uint8)]) == times


def test_psnr_is_that_of_its_definition():
    gap = np.array([0, 3, 4], np.uint8)
    assert view_compare.psnr(gap) == pytest.approx(10 * math.log10(255**2 / (25 / 3)))
    assert view_compare.psnr(np.zeros(3, np.uint8)) == math.inf


# Interpolate


def test_interpolate_gives_a_player_with_one_frame_visible(toy):
    found = shown(view_interpolate.render, toy(), asked(frames=8))
    assert found.count("<img") == 8
    assert found.count(" hidden>") == 7
    assert 'min="0" max="7" value="0"' in found
    assert "view=interpolate&amp;seed=7&amp;to=9&amp;frames=8" in found


def test_the_animation_goes_there_and_back(toy):
    backend = toy()
    query = {"view": "interpolate", "seed": "7", "to": "200", "frames": "8"}
    found = asyncio.run(view_interpolate.animation(backend, query))
    content = base64.b64decode(found["data"].removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(content)) as movie:
        assert (movie.n_frames, movie.size) == (14, (256, 256))
        movie.seek(7)
        assert movie.convert("L").getpixel((0, 0)) == 200


def test_an_animation_that_cannot_be_made_gives_a_sentence(toy):
    backend = toy()
    backend.error = BusyError("later", status=503)
    assert asyncio.run(view_interpolate.animation(backend, {})) == {"error": "later"}


# Trajectory


def test_trajectory_says_how_to_get_one(toy):
    found = shown(view_trajectory.render, toy(), asked())
    assert "mmf-export CHECKPOINT --steps 1,2,4" in found


def test_trajectory_names_the_variants_that_have_one(toy):
    backend = toy(offers=(offer(), offer("int8", (1, 2), (2,))))
    assert "Choose another variant: int8" in shown(view_trajectory.render, backend, asked())


def test_trajectory_has_a_strip_for_every_number_of_steps_on_one_axis(toy):
    backend = toy(offers=(offer(steps=(1, 2, 4), trajectories=(2, 4)),))
    found = shown(view_trajectory.render, backend, asked(steps=4))
    assert [(a["what"], a["steps"]) for a in backend.asked] == [
        ("generate", 1), ("trajectory", 2), ("trajectory", 4),
    ]  # fmt: skip
    strips = re.findall(r'<div class="mmf-way".*?</section>', found)
    assert [len(re.findall("<img", strip)) for strip in strips] == [2, 3, 5]
    columns = [re.findall(r'<div style="grid-column:(\d+)', strip) for strip in strips]
    assert columns == [["1", "9"], ["1", "5", "9"], ["1", "3", "5", "7", "9"]]
    arrows = [re.findall(r"<i style=\"grid-column:(\d+/\d+)", strip) for strip in strips]
    assert arrows == [["2/9"], ["2/5", "6/9"], ["2/3", "4/5", "6/7", "8/9"]]
    assert text(found).count("t = 0.5") == 2


# Latency and quality


def test_latency_shows_each_variant_against_pytorch_at_its_steps():
    found = text(view_latency.speed(about(measured=MEASURED)))
    assert "1 step PyTorch eager 4.00 ms an image fp32 (onnxruntime on cpu) 0.50 ms an image 8.0×" \
        in found  # fmt: skip
    assert "4 steps PyTorch eager 16.0 ms an image" in found
    assert "On a CPU, 2 cores with torch 2.15." in found
    widths = re.findall(r"width:([\d.]+)%", view_latency.speed(about(measured=MEASURED)))
    assert widths == ["25.0", "3.1", "100.0", "12.5"], "one scale for all steps"


@pytest.mark.parametrize("measured", [{}, {"latency": {"fp32": 3, "int8": {"batch1_ms": "x"}}}])
def test_latency_without_measurements_says_so(measured):
    assert "carries no measurements" in view_latency.speed(about(measured=measured))


def test_quality_numbers_come_with_what_they_mean():
    found = text(view_latency.quality(about(quality={
        "class_accuracy": 0.9955, "classifier_accuracy": 0.9889, "frechet": 1.187,
        "frechet_real": 0.833,
    })))  # fmt: skip
    assert "99.5%" in found or "99.6%" in found
    assert "of real images it recognises 98.9%" in found
    assert "1.19" in found
    assert "0.83 apart" in found
    assert view_latency.quality(about()) == ""
    assert view_latency.quality(about(quality={"frechet": "nan"})) == ""


def test_measuring_now_makes_one_image_at_a_time_and_leaves_the_first_ones_out(toy):
    backend = toy(measured=MEASURED)
    found = text(asyncio.run(view_latency.measure(backend, asked(label=1))))
    assert len(backend.asked) == view_latency.WARM + view_latency.RUNS
    assert {(a["n"], a["label"]) for a in backend.asked} == {(1, 1)}
    assert "Median of 30 images, one at a time." in found
    assert "fp32, 1 step: engine 8.00 ms an image p90 8.00" in found


def test_percentiles_are_values_that_were_measured():
    values = [5.0, 1.0, 2.0, 4.0, 3.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert view_latency.percentile(values, 50) == 6.0
    assert view_latency.percentile(values, 90) == 10.0
    assert view_latency.percentile([3.0], 90) == 3.0


# Errors


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RequestError("seed: no"), "seed: no"),
        (ServiceError("seed: no (HTTP 422 from POST …)", status=422, message="seed: no"),
         "seed: no"),
        (BusyError("full; try again in 2 s (HTTP 503)", status=503, message="full"),
         "full; try again in 2 s (HTTP 503)"),
        (UnreachableError("http://x: gone"), "http://x: gone"),
    ],
)  # fmt: skip
def test_a_visitor_reads_what_the_service_said(error, said):
    assert sentence(error) == said


def test_every_view_has_a_link_to_itself(toy):
    offers = (offer(steps=(1, 2), trajectories=(2,)), offer("int8"))
    renders = (view_generate, view_compare, view_interpolate, view_trajectory)
    for name, module in zip(permalink.VIEWS, renders, strict=True):
        found = shown(module.render, toy(offers=offers), asked())
        assert permalink.query(asked(), about(offers=offers), name).replace("&", "&amp;") in found
