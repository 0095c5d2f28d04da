"""Small random networks, exported once for all tests of the stage."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from functools import cache
from itertools import pairwise

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from mmf_deploy.export import build, measurements, ort_web
from mmf_deploy.export.assemble import Request, export_bundle
from mmf_deploy.export.fold import frozen_sampler
from mmf_deploy.export.origin import Origin, from_checkpoint
from mmf_deploy.export.targets import Form
from mmf_deploy.export.to_onnx import export_onnx
from torch import nn

from mmf_deploy import bundle as bundle_module
from mmf_deploy import checkpoint
from mmf_deploy.nn.build import build_network
from mmf_deploy.spec import SampleSpec

OPENVINO = importlib.util.find_spec("openvino") is not None
ONE_LEVEL = {"type": "unet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1,
             "attn_resolutions": [], "zero_init": 1.0}  # fmt: skip
TWO_LEVELS = {**ONE_LEVEL, "channel_mult": [1, 2], "attn_resolutions": [4]}
MLP = {"type": "mlp", "width": 16, "depth": 2, "zero_init": 1.0}
KINDS = {
    "conditional": (SampleSpec(shape=(1, 8, 8), classes=3), ONE_LEVEL),
    "unconditional": (SampleSpec(shape=(3, 8, 8)), TWO_LEVELS),
    "guided": (SampleSpec(shape=(1, 8, 8), classes=3, guidance=(1.0, 4.0)), ONE_LEVEL),
    "vector": (SampleSpec(shape=(2,)), MLP),
}
# a checkpoint that is quick to export, with every input there is
GUIDED_VECTOR = (SampleSpec(shape=(2,), classes=3, guidance=(1.0, 4.0)), MLP)
# what each kind is exported for: the first one for nearly everything there is
REQUESTS = {
    "conditional": {
        "targets": ("onnxruntime-cpu", *(("openvino",) if OPENVINO else ()), "onnxruntime-cuda",
                    "web"),
        "precisions": ("fp32", "int8", "fp16", "bf16"),
        "steps": (1, 2),
    },
    "unconditional": {"precisions": ("fp32", "int8")},
    "guided": {},
    "vector": {},
}  # fmt: skip
SAMPLES = 80


def source(**changes) -> bundle_module.Source:
    """Where a network that no run made comes from."""
    known = {"run": "test", "step": 0, "weights": "model", "weights_sha256": "0" * 64}
    return bundle_module.Source(**{**known, "parameters": 1, **changes})


class Convolutions(nn.Module):
    """u of four convolutions that offers nothing to fold; labels and guidance matter if given."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        widths = (1, 12, 12, 12, 1)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.label = nn.Embedding(classes + 1, 12) if classes else None
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2.0)

    def forward(self, x, r, t, label=None, guidance=None):
        h = self.layers[0](x) * (1.5 * t - 0.5 * r).reshape(-1, 1, 1, 1)
        if self.label is not None and label is not None:
            h = h + self.label(label)[:, :, None, None]
        if guidance is not None:
            h = h * guidance.reshape(-1, 1, 1, 1)
        for layer in self.layers[1:]:
            h = layer(F.silu(h))
        return h


@pytest.fixture(scope="session", autouse=True)
def _quick_latency():
    """Three calls and not a second of them: the tests judge no time."""
    with pytest.MonkeyPatch.context() as patch:
        median_ms = measurements.median_ms
        patch.setattr(measurements, "median_ms", lambda run, *_: median_ms(run, 0.0, 3))
        yield


@pytest.fixture(scope="session", autouse=True)
def traces(shared):
    """Tracing costs seconds: the same sampler in the same form is traced once."""

    def trace(sampler, spec, path, form=None):
        said = (sampler, sampler.grid, sampler.with_trajectory, spec, form or Form())
        state = hashlib.sha256(repr(said).encode())
        for name, value in sampler.state_dict().items():
            state.update(name.encode() + value.numpy().tobytes())
        name = f"{state.hexdigest()}.onnx"
        shutil.copy(shared(name, lambda path: export_onnx(sampler, spec, path, form)), path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "export_onnx", trace)
        yield


@pytest.fixture
def traced_anew(monkeypatch):
    """``traced_anew()``: from then on the test traces every graph itself."""
    return lambda: monkeypatch.setattr(build, "export_onnx", export_onnx)


@pytest.fixture(scope="session")
def ort_package(tmp_path_factory):
    """An npm package like onnxruntime-web's, whose files are a few bytes each."""
    folder = tmp_path_factory.mktemp("npm") / "package"
    (folder / "dist").mkdir(parents=True)
    about = {"name": "onnxruntime-web", "version": ort_web.VERSION}
    (folder / "package.json").write_text(json.dumps(about))
    for name in ort_web.FILES.values():
        ending = f"\n//# sourceMappingURL={name}.map\n" if name.endswith(".mjs") else ""
        (folder / "dist" / name).write_text(f"content of {name};{ending}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_npm(ort_package, tmp_path_factory):
    """Whoever exports for browsers finds that package in the cache, and fetches nothing."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort_web, "cache_directory", lambda: cache)
        ort_web._write_cache(cache / ort_web.VERSION, ort_web.obtain(ort_package))
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """``checkpoints(kind)``: a run with one checkpoint, whose average is half its model."""

    @cache
    def write(kind):
        spec, network = KINDS.get(kind, GUIDED_VECTOR)
        torch.manual_seed(0)
        state = build_network(spec, network).state_dict()
        # a trained network is no random one: samples of the order of the data
        weights = {k: 0.7 * v.numpy() for k, v in state.items()}
        return checkpoint.write(
            tmp_path_factory.mktemp("runs") / kind / "checkpoints",
            step=1,
            spec=spec,
            network=network,
            weights={
                "model": {k: v / np.float32(0.7) for k, v in weights.items()},
                "ema-0.9": weights,
            },
            config={"name": kind, "objective": {"name": "mmf"}},
            meta={"name": kind, "seed": 0, "versions": {}},
        )

    return write


@pytest.fixture(scope="session")
def origins(checkpoints):
    """``origins(kind)``: the origin of its checkpoint."""
    return cache(lambda kind: from_checkpoint(checkpoints(kind)))


@pytest.fixture(scope="session")
def bundles(checkpoints, traces, shared):
    """``bundles(kind)``: the bundle of its checkpoint, with the variants of ``REQUESTS``."""

    @cache
    def export(kind):
        def make(path):
            out = path / "bundle"
            export_bundle(Request(checkpoints(kind), out, samples=SAMPLES, **REQUESTS[kind]))

        return bundle_module.load(shared(kind, make) / "bundle")

    return export


@pytest.fixture(scope="session")
def plain_bundle(checkpoints, traces, shared):
    """What anyone's export gives, beside ours."""

    def make(path):
        out, targets = path / "plain", ("onnxruntime-cpu", "plain")
        export_bundle(Request(checkpoints("conditional"), out, targets=targets, samples=16))

    return bundle_module.load(shared("plain", make) / "plain")


@pytest.fixture(scope="session", params=KINDS)
def exported(request, checkpoints, bundles):
    """(checkpoint, bundle) of every kind of generator."""
    return checkpoint.read(checkpoints(request.param)), bundles(request.param)


@pytest.fixture(scope="session")
def graphs(origins, bundles, traces, tmp_path_factory):
    """``graphs(kind, form)``: the one-step fp32 graph in that form, traced once."""

    @cache
    def trace(kind, form=None):
        if form in (None, Form()):
            found = bundles(kind)
            return found.file(found.variant("fp32"))
        path = tmp_path_factory.mktemp("graphs") / "graph.onnx"
        build.export_onnx(frozen_sampler(origins(kind), 1), KINDS[kind][0], path, form)
        return path

    return trace


@pytest.fixture(scope="session")
def session():
    """``session(graph or its path)``: ONNX Runtime on the CPU, with one thread."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3

    def load(graph):
        content = graph.SerializeToString() if hasattr(graph, "SerializeToString") else str(graph)
        return ort.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

    return load


@pytest.fixture(scope="session")
def make_origin():
    """``make_origin(net, spec)``: the origin of a network that no run made."""

    def make(net, spec, **changes):
        return Origin(net.eval().requires_grad_(False), spec, source(**changes))

    return make


@pytest.fixture(scope="session")
def convolutions(make_origin):
    """``convolutions(classes, guidance)``: the origin of 8 × 8 images by convolutions alone."""

    @cache
    def make(classes=0, guidance=None):
        torch.manual_seed(3)
        spec = SampleSpec(shape=(1, 8, 8), classes=classes, guidance=guidance)
        return make_origin(Convolutions(classes), spec)

    return make


@pytest.fixture(scope="session")
def conv_graph(convolutions, traces, tmp_path_factory):
    """The fp32 graph of ``convolutions()``."""
    origin = convolutions()
    path = tmp_path_factory.mktemp("conv") / "conv.onnx"
    build.export_onnx(frozen_sampler(origin, 1), origin.spec, path)
    return path
