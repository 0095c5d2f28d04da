"""A backend without a service, whose images are simple arithmetic on seeds."""

from __future__ import annotations

import numpy as np
import pytest
from mmf_deploy.serve.demo.backend import About, Offer

from mmf_deploy.client.replies import Images
from mmf_deploy.errors import MMFError
from mmf_deploy.spec import SampleSpec

SPEC = SampleSpec(shape=(1, 4, 4), classes=3, class_names=("cat", "a <b>dog</b>", "7"))
GUIDED = SPEC.model_copy(update={"guidance": (1.0, 4.0)})


def offer(model="fp32", steps=(1,), trajectories=(), **changes) -> Offer:
    found = {
        "digest": "0123456789abcdef", "variant": model, "engine": "onnxruntime", "device": "cpu",
        "precision": model,
    }  # fmt: skip
    return Offer(model=model, steps=steps, trajectories=trajectories, **(found | changes))


FP32 = offer()


def about(spec=SPEC, offers=(FP32,), **changes) -> About:
    found = {
        "name": "toy", "where": "in this process", "measured": {}, "quality": {},
        "max_images": 256,
    }  # fmt: skip
    return About(spec=spec, offers=tuple(offers), **(found | changes))


class FakeBackend:
    """Every pixel of an image is (seed + label + level of the model) mod 256."""

    def __init__(self, found: About, levels: dict[str, int] | None = None) -> None:
        self.about = found
        self.levels = levels or {}
        self.asked: list[dict] = []
        self.error: MMFError | None = None

    async def generate(self, n, *, seed, **wanted) -> Images:
        seeds = [seed + k for k in range(n)]
        labels = [wanted.get("label")] * n
        if wanted.get("label") is None:
            labels = [self.about.spec.default_label(s) for s in seeds]
        pixels = [s + label for s, label in zip(seeds, labels, strict=True)]
        return self._images("generate", pixels, seeds, labels, n=n, seed=seed, **wanted)

    async def interpolate(self, start, end, frames, **wanted) -> Images:
        pixels = np.linspace(start, end, frames).astype(int).tolist()
        label = wanted.get("label") or 0
        return self._images(
            "interpolate", pixels, [start, end], [label], start=start, end=end, frames=frames,
            **wanted,
        )  # fmt: skip

    async def trajectory(self, *, seed, steps, **wanted) -> Images:
        pixels = [200 - 10 * k for k in range(steps + 1)]
        return self._images("trajectory", pixels, [seed], [0], seed=seed, steps=steps, **wanted)

    def _images(self, what, pixels, seeds, labels, **asked) -> Images:
        self.asked.append({"what": what, **asked})
        if self.error is not None:
            raise self.error
        channels, height, width = self.about.spec.shape
        level = self.levels.get(asked.get("model") or "", 0)
        values = (np.array(pixels, object) + level) % 256
        array = np.empty((len(pixels), height, width, channels), np.uint8)
        array[:] = values.astype(np.uint8)[:, None, None, None]
        return Images(
            seeds=tuple(seeds), labels=tuple(labels), guidance=None, digest="0123456789abcdef",
            variant=asked.get("model") or "fp32", model=asked.get("model"),
            timing_ms={"queue": 0.25, "infer": 8.0, "encode": 0.5}, request_id=None, array=array,
        )  # fmt: skip


@pytest.fixture
def toy():
    """``toy(levels, **about)``: a fake backend."""
    return lambda levels=None, **changes: FakeBackend(about(**changes), levels)
