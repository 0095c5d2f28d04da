"""A Triton model repository: read through Triton's schema, held against graph and golden images.

No server runs here. ``batched`` restates the rules by which Triton 2.x and its ONNX Runtime
backend join a configuration and a graph.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from mmf_deploy.export.to_triton import model_name, write_triton_repository
from tritonclient.grpc import InferInput
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from mmf_deploy import bundle as bundles
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import BUCKETS, check_inputs
from mmf_deploy.errors import ConfigError, ParityError
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

NUMPY = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_UINT8": np.uint8}
GRAPH = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)", "TYPE_UINT8": "tensor(uint8)"}
SPECS = {
    "digits": None,  # the embedded bundle, a real export
    "conditional": SampleSpec(shape=(1, 8, 8), classes=3, class_names=("a", "ü", "c d")),
    "unconditional": SampleSpec(shape=(3, 4, 6)),
    "guided": SampleSpec(shape=(3, 4, 4), classes=2, guidance=(1.5, 4.0)),
    "vector": SampleSpec(shape=(4,)),
}


@pytest.fixture(params=SPECS)
def bundle(request, make_tiny_bundle) -> bundles.Bundle:
    spec = SPECS[request.param]
    return bundles.load(digits_bundle() if spec is None else make_tiny_bundle(spec))


@pytest.fixture
def tiny(tiny_bundle) -> bundles.Bundle:
    return bundles.load(tiny_bundle)


def read(path: Path) -> ModelConfig:
    config = text_format.Parse((path / "config.pbtxt").read_text(), ModelConfig())
    assert config.name == path.name  # Triton refuses any other
    return config


def written(bundle, out, **options) -> tuple[Path, ModelConfig]:
    path = write_triton_repository(bundle, bundle.variant(), out, **options)
    return path, read(path)


def batched(tensor) -> list[int]:
    """The shape that the backend wants of the graph: -1 for the batch, then dims or reshape."""
    assert len(tensor.dims) >= 1
    inner = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    assert math.prod(inner) == math.prod(tensor.dims)
    assert min([*tensor.dims, *inner]) >= 1
    return [-1, *inner]


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path / "1" / "model.onnx", providers=["CPUExecutionProvider"])


def as_triton(config, values) -> dict[str, np.ndarray]:
    """What reaches the graph of arrays that a client sends, batch first."""
    feeds = {}
    for tensor in config.input:
        value = values[tensor.name]
        assert value.dtype == NUMPY[DataType.Name(tensor.data_type)]
        assert list(value.shape[1:]) == list(tensor.dims)
        feeds[tensor.name] = value.reshape([len(value), *batched(tensor)[1:]])
    assert set(feeds) == set(values)
    return feeds


def sent(golden, spec) -> dict[str, np.ndarray]:
    """The golden inputs as a client sends them."""
    values = {"noise": gaussian_batch([int(s) for s in golden.seeds], spec.shape)}
    if golden.labels is not None:
        values["label"] = golden.labels.astype(np.int64)[:, None]
    if golden.guidance is not None:
        values["guidance"] = golden.guidance[:, None]
    return values


def test_names_types_and_shapes_are_those_of_the_graph(bundle, tmp_path):
    path, config = written(bundle, tmp_path)
    graph = session(path)
    for tensors, found in (
        (config.input, graph.get_inputs()),
        (config.output, graph.get_outputs()),
    ):
        assert [t.name for t in tensors] == [f.name for f in found]
        for tensor, node in zip(tensors, found, strict=True):
            assert GRAPH[DataType.Name(tensor.data_type)] == node.type
            assert batched(tensor) == [d if isinstance(d, int) else -1 for d in node.shape]
    spec = bundle.spec
    names = ["noise"] + ["label"] * spec.conditional + ["guidance"] * spec.guided
    assert [t.name for t in config.input] == names
    assert tuple(config.input[0].dims) == spec.shape
    assert not any(t.optional for t in config.input)  # the backend refuses it with batches
    assert [t.name for t in config.output] == ["sample"] + ["image"] * spec.is_image


def test_written_graph_is_the_bundles_and_gives_its_golden_images(bundle, tmp_path):
    path, config = written(bundle, tmp_path)
    model = path / "1" / "model.onnx"
    assert model.read_bytes() == bundle.file(bundle.variant()).read_bytes()
    golden = bundle.golden()
    feeds = as_triton(config, sent(golden, bundle.spec))
    name = "image" if bundle.spec.is_image else "sample"
    (found,) = session(path).run([name], feeds)
    (output,) = (o for o in config.output if o.name == name)
    assert list(found.shape[1:]) == list(output.dims)
    difference = np.abs(found.astype(float) - golden.outputs.astype(float)).max()
    assert difference <= golden.tolerance["fp32"]


def test_warm_up_runs_the_first_golden_input(bundle, tmp_path):
    path, config = written(bundle, tmp_path)
    assert [w.batch_size for w in config.model_warmup] == [1]
    (warmup,) = config.model_warmup
    files = {f.name for f in (path / "warmup").iterdir()}
    values = {}
    for tensor in config.input:
        given = warmup.inputs[tensor.name]
        assert (given.data_type, list(given.dims)) == (tensor.data_type, list(tensor.dims))
        raw = (path / "warmup" / given.input_data_file).read_bytes()
        files.remove(given.input_data_file)
        dtype = NUMPY[DataType.Name(given.data_type)]
        values[tensor.name] = np.frombuffer(raw, dtype).reshape([1, *given.dims])
    assert not files
    assert set(warmup.inputs) == set(values)
    feeds = as_triton(config, values)
    check_inputs(bundle.spec, feeds["noise"], feeds.get("label"), feeds.get("guidance"))
    golden = bundle.golden()
    for name, value in sent(golden, bundle.spec).items():
        np.testing.assert_array_equal(values[name], value[:1], err_msg=name)


def test_clients_request_has_the_shapes_of_the_configuration(bundle, tmp_path):
    _, config = written(bundle, tmp_path)
    values = sent(bundle.golden(), bundle.spec)
    for tensor in config.input:
        value = values[tensor.name]
        kind = DataType.Name(tensor.data_type).removeprefix("TYPE_")
        InferInput(tensor.name, [len(value), *tensor.dims], kind).set_data_from_numpy(value)


def test_batches_are_the_engines_buckets_and_nothing_waits(tiny, tmp_path):
    _, config = written(tiny, tmp_path)
    assert config.backend == "onnxruntime"
    assert config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == BUCKETS[-1]
    assert tuple(config.dynamic_batching.preferred_batch_size) == BUCKETS
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.version_policy.latest.num_versions == 1
    assert not config.HasField("optimization")


def test_queue_delay_is_not_cut_short_by_a_small_preferred_size(tiny, tmp_path):
    _, config = written(tiny, tmp_path, max_queue_delay_us=2000)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert tuple(config.dynamic_batching.preferred_batch_size) == BUCKETS[-1:]


@pytest.mark.parametrize(
    ("device", "kind", "expected"),
    [
        ("cpu", "auto", "KIND_CPU"),
        ("cuda", "auto", "KIND_GPU"),
        ("cpu", "gpu", "KIND_GPU"),
        ("cuda", "cpu", "KIND_CPU"),
    ],
)
def test_instances_go_where_the_variant_was_made_for_unless_told(
    device, kind, expected, tiny, tmp_path
):
    variant = tiny.variant().model_copy(update={"device": device})
    config = read(write_triton_repository(tiny, variant, tmp_path, instances=3, kind=kind))
    (group,) = config.instance_group
    assert (ModelInstanceGroup.Kind.Name(group.kind), group.count) == (expected, 3)
    sizes = tuple(w.batch_size for w in config.model_warmup)
    assert sizes == (BUCKETS if expected == "KIND_GPU" else (1,))


def test_small_graphs_get_one_thread_and_large_ones_a_thread_per_core(tiny, tmp_path, monkeypatch):
    def threads(out):
        return written(tiny, tmp_path / out)[1].parameters["intra_op_thread_count"].string_value

    assert threads("small") == "1"
    monkeypatch.setattr("mmf_deploy.export.to_triton.SMALL_GRAPH_BYTES", 1)
    assert threads("large") == "0"


def test_class_names_come_one_a_line_or_not_at_all(make_tiny_bundle, tiny, tmp_path):
    named = bundles.load(make_tiny_bundle(SPECS["conditional"]))
    path, _ = written(named, tmp_path / "named")
    assert (path / "labels.txt").read_text(encoding="utf-8").splitlines() == ["a", "ü", "c d"]
    path, _ = written(tiny, tmp_path / "plain")
    assert not (path / "labels.txt").exists()


def test_configuration_names_the_bundle_it_came_from(tiny, tmp_path):
    path, _ = written(tiny, tmp_path)
    assert (path / "config.pbtxt").read_text().startswith(f"# bundle {tiny.digest}\n")


def test_two_variants_share_a_repository_and_names_fit_a_url(tiny, tmp_path):
    variant = tiny.variant()
    other = variant.model_copy(update={"name": "int8"})
    for v in (variant, other):
        write_triton_repository(tiny, v, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"tiny-fp32", "tiny-int8"}
    odd = bundles.Bundle(
        tiny.path, tiny.manifest.model_copy(update={"name": 'a b/ü"c'}), tiny.digest
    )
    assert model_name(odd, variant) == "a-b-c-fp32"
    path, _ = written(odd, tmp_path)
    assert path.parent == tmp_path


def test_model_that_exists_is_replaced_only_by_force_and_only_if_it_is_one(tiny, tmp_path):
    path, _ = written(tiny, tmp_path)
    (path / "1" / "model.onnx").write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"tiny-fp32 exists; choose another --out"):
        written(tiny, tmp_path)
    assert (path / "1" / "model.onnx").read_bytes() == b"old"
    written(tiny, tmp_path, force=True)
    assert (path / "1" / "model.onnx").read_bytes() != b"old"
    (path / "config.pbtxt").unlink()
    with pytest.raises(ConfigError, match="is not a Triton model"):
        written(tiny, tmp_path, force=True)
    assert (path / "1" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instances": 0}, "0 instances: expected 1 or more"),
        ({"max_queue_delay_us": -1}, "expected 0 or more"),
        ({"kind": "gqu"}, "did you mean 'gpu'"),
    ],
)
def test_setting_out_of_range_is_refused_and_nothing_is_written(options, message, tiny, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        written(tiny, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"engine": "openvino"}, {"engine": "aoti", "file": "model.pt2"}]
)
def test_variant_for_another_engine_is_refused_by_name(changes, tiny, tmp_path):
    variant = tiny.variant().model_copy(update={"name": "other", **changes})
    with pytest.raises(ConfigError, match=r"variant 'other' .*'onnxruntime'"):
        write_triton_repository(tiny, variant, tmp_path)


def fixed_batch(dim):
    dim.dim_value = 4


def free_side(dim):
    dim.dim_param = "side"


@pytest.mark.parametrize(("at", "spoil"), [(0, fixed_batch), (2, free_side)])
@pytest.mark.parametrize("field", ["input", "output"])
def test_graph_that_triton_could_not_batch_is_refused(field, at, spoil, tiny, tmp_path):
    model = onnx.load(tiny.file(tiny.variant()))
    value = getattr(model.graph, field)[0]
    spoil(value.type.tensor_type.shape.dim[at])
    (tmp_path / "b").mkdir()
    onnx.save(model, tmp_path / "b" / "model.fp32.onnx")
    bundle = bundles.Bundle(tmp_path / "b", tiny.manifest, tiny.digest)
    with pytest.raises(ParityError, match=rf"{value.name} FLOAT \[.*dynamic batch"):
        write_triton_repository(bundle, tiny.variant(), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_failed_write_leaves_nothing(tiny, tmp_path, monkeypatch):
    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="disk full"):
        written(tiny, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_documented_request_fits_the_model_and_gives_the_seeds_image(tmp_path, capsys):
    page = (Path(__file__).parents[2] / "docs" / "triton.md").read_text()
    code, client = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(compile(code, "triton.md", "exec"), {})
    request = json.loads(capsys.readouterr().out)
    digits = bundles.load(digits_bundle())
    path, config = written(digits, tmp_path)
    values = {}
    for given, tensor in zip(request["inputs"], config.input, strict=True):
        assert f"TYPE_{given['datatype']}" == DataType.Name(tensor.data_type)
        dtype = NUMPY[DataType.Name(tensor.data_type)]
        values[given["name"]] = np.array(given["data"], dtype).reshape(given["shape"])
    (image,) = session(path).run(["image"], as_triton(config, values))
    golden = digits.golden()
    for row, seed in zip(image, (7, 8), strict=True):
        (at,) = np.flatnonzero(golden.seeds == seed)
        assert golden.labels[at] == seed % 10
        assert np.abs(row.astype(int) - golden.outputs[at]).max() <= 1
    assert f'infer("{config.name}", inputs)' in client
    assert f"/v2/models/{config.name}/infer" in page
    # the other client, as far as one comes without a server
    space: dict[str, object] = {}
    exec(compile(client.rsplit("images =", 1)[0], "triton.md", "exec"), space)
    sizes = {i.name(): i.shape() for i in space["inputs"]}
    assert sizes == {g["name"]: g["shape"] for g in request["inputs"]}
