"""Bodies of the V2 protocol: what the official client writes and reads, and what attackers do."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import tritonclient.http as triton
from mmf_deploy.serve import kserve_model
from mmf_deploy.serve.kserve_codec import DTYPES, Output, decode, encode
from mmf_deploy.serve.kserve_compression import compress, decompress, wanted_encoding
from mmf_deploy.serve.samples import Item, Priority

from mmf_deploy.errors import RequestError
from mmf_deploy.spec import SampleSpec

DIGITS = SampleSpec(shape=(1, 8, 8), classes=10, class_names=tuple("abcdefghij"))
GUIDED = SampleSpec(shape=(3, 4, 4), classes=3, guidance=(1.0, 1.1))
VECTORS = SampleSpec(shape=(5,))
HEAD = {"model_name": "tiny", "model_version": "0123456789ab"}
PATIENCE_S = 0.1  # of computing: other processes do not count


def tensor(name, values, datatype, binary=True):
    values = np.asarray(values)
    given = triton.InferInput(name, list(values.shape), datatype)
    return given.set_data_from_numpy(values, binary_data=binary)


def written(*inputs, **options):
    """Body and header length as the official client writes them."""
    body, length = triton.InferenceServerClient.generate_request_body(list(inputs), **options)
    return body, None if length is None else str(length)


def asked(body, length=None, spec=DIGITS, max_images=256):
    """A body to the work that it asks for, and the outputs."""
    request, tensors = decode(body, length, max_images)
    return kserve_model.work_of(request, tensors, spec), kserve_model.wanted(request, spec)


def as_json(seeds=(1, 2), **more):
    seed = {"name": "seed", "shape": [len(seeds)], "datatype": "INT64", "data": list(seeds)}
    return json.dumps({"inputs": [seed], **more}).encode()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", DTYPES)
def test_a_tensor_of_every_datatype_arrives_as_the_official_client_sent_it(datatype, binary):
    values = np.array([[0, 1], [2, 100]], DTYPES[datatype])
    body, length = written(tensor("x", values, datatype, binary))
    _, tensors = decode(body, length, 4)
    assert tensors["x"].shape == (2, 2)
    np.testing.assert_array_equal(tensors["x"].values, values.ravel(), strict=True)


@pytest.mark.parametrize("binary", [True, False])
def test_strings_arrive_as_the_official_client_sent_them(binary):
    body, length = written(
        tensor("x", np.array(["", "cat", "Gürteltier"], object), "BYTES", binary)
    )
    assert decode(body, length, 3)[1]["x"].values == ["", "cat", "Gürteltier"]


def test_binary_inputs_are_views_into_the_body():
    body, length = written(tensor("x", np.arange(1000), "INT64"))
    values = decode(body, length, 1000)[1]["x"].values
    assert not values.flags.owndata
    assert np.shares_memory(values, np.frombuffer(body, np.uint8))


def test_nested_data_is_read_in_row_major_order():
    given = {"name": "x", "shape": [2, 3], "datatype": "INT8", "data": [[1, 2, 3], [4, 5, 6]]}
    _, tensors = decode(json.dumps({"inputs": [given]}).encode(), None, 6)
    assert tensors["x"].values.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("binary", [(True, True), (False, False), (True, False), (False, True)])
def test_the_official_client_reads_what_is_written(binary):
    image = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    sample = np.linspace(-1, 1, 10, dtype=np.float32).reshape(2, 5)
    outputs = [Output("image", image, binary[0]), Output("sample", sample, binary[1])]
    body = encode(HEAD | {"id": "7"}, outputs)
    assert (body.json_bytes is None) == (not any(binary))
    reply = triton.InferenceServerClient.parse_response_body(
        body.content, header_length=body.json_bytes
    )
    assert reply.get_response()["id"] == "7"
    np.testing.assert_array_equal(reply.as_numpy("image"), image, strict=True)
    np.testing.assert_array_equal(reply.as_numpy("sample"), sample, strict=True)


def test_seeds_labels_and_guidance_become_items():
    work, _ = asked(
        *written(
            tensor("guidance", np.array([1.0, 1.1], np.float32), "FP32"),
            tensor("seed", np.array([[7], [2**63 - 1]]), "INT64"),
            tensor("label", np.array([2, 0], np.int8), "INT8"),
        ),
        spec=GUIDED,
    )
    # float32(1.1) lies above 1.1, and is no less within the range for that
    assert work.items == [Item(7, 2, 1.0), Item(2**63 - 1, 0, 1.1)]


def test_labels_follow_the_seeds_if_none_are_given_and_may_be_names():
    assert [item.label for item in asked(as_json([3, 14]))[0].items] == [3, 4]
    named = tensor("label", np.array([b"j", b"a"], object), "BYTES")
    work, _ = asked(*written(tensor("seed", np.array([3, 14]), "INT64"), named))
    assert [item.label for item in work.items] == [9, 0]


def test_floats_are_seeds_as_far_as_they_hold_integers_exactly():
    body, length = written(tensor("seed", np.array([0, 2.0**53]), "FP64"))
    assert [item.seed for item in asked(body, length)[0].items] == [0, 2**53]
    for wrong in ([2.0**54], [0.5], [np.nan], [np.inf], [-np.inf]):
        with pytest.raises(RequestError, match="not an integer"):
            asked(*written(tensor("seed", np.array(wrong), "FP64")))


@pytest.mark.parametrize(
    ("parameters", "priority", "deadline_s"),
    [
        ({}, Priority.NORMAL, None),
        ({"priority": 0, "timeout": 0}, Priority.NORMAL, None),
        ({"priority": 1, "timeout": 250_000}, Priority.HIGH, 0.25),
        ({"priority": 2}, Priority.NORMAL, None),
        ({"priority": 3}, Priority.LOW, None),
        ({"priority": 2**63 - 1}, Priority.LOW, None),
        ({"priority": "low", "deadline_ms": 20}, Priority.LOW, 0.02),
        ({"timeout": 250_000, "deadline_ms": 300}, Priority.NORMAL, 0.25),
        ({"timeout": 400_000, "deadline_ms": 300}, Priority.NORMAL, 0.3),
    ],
)
def test_priority_and_timeout_are_read_as_triton_means_them(parameters, priority, deadline_s):
    work, _ = asked(as_json(parameters=parameters | {"steps": 4}))
    assert (work.priority, work.deadline_s, work.steps) == (priority, deadline_s, 4)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [("image", False)]),
        ({"outputs": []}, [("image", False)]),
        ({"parameters": {"binary_data_output": True}}, [("image", True)]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [
                    {"name": "label", "parameters": {"binary_data": False}},
                    {"name": "image"},
                    {"name": "seed", "parameters": {}},
                ],
            },
            [("label", False), ("image", True), ("seed", True)],
        ),
    ],
)
def test_outputs_come_as_they_are_asked_for(fields, expected):
    assert asked(as_json(**fields))[1] == expected


def given(**changed):
    """A request whose input is changed."""
    base = {"name": "seed", "shape": [2], "datatype": "INT64", "data": [1, 2]}
    tensor = {key: value for key, value in (base | changed).items() if value is not None}
    return json.dumps({"inputs": [tensor]}).encode(), None


def binary(tail=bytes(16), length=None, size=16, **changed):
    """A request with a binary input whose parts are changed."""
    head, _ = given(data=None, parameters={"binary_data_size": size}, **changed)
    return head + tail, str(len(head)) if length is None else length


def parameters(**fields):
    return as_json(parameters=fields), None


def with_label(**changed):
    label = {"name": "label", "shape": [2], "datatype": "INT64", "data": [1, 2]} | changed
    return as_json(inputs=[json.loads(given()[0])["inputs"][0], label]), None


def strings(piece):
    return binary(tail=piece, size=len(piece), datatype="BYTES")


HOSTILE = {
    "nothing": (b"", None, "not JSON"),
    "no JSON": (b"\x89PNG", None, "not JSON"),
    "half of it": (as_json()[:-1], None, "not JSON: EOF"),
    "more than it": (as_json() + b"x", None, "trailing"),
    "deep arrays": (b'{"inputs":' + b"[" * 100_000, None, "recursion"),
    "deep objects": (b'{"inputs":' * 50_000, None, "recursion"),
    "deep data": (*given(data=json.loads("[" * 100 + "]" * 100)), "not nested"),
    "a list": (b"[1]", None, "JSON object"),
    "NaN": (b"NaN", None, "JSON object"),
    "invalid UTF-8": (b'{"id": "\xff"}', None, "not JSON"),
    "half a surrogate": (b'{"id": "\\ud800"}', None, "not JSON"),
    "no inputs": (b"{}", None, "inputs is missing"),
    "empty inputs": (b'{"inputs": []}', None, "at least 1"),
    "many inputs": (json.dumps({"inputs": [{}] * 99}).encode(), None, "at most 16"),
    "unknown field": (as_json(inputz=1), None, "did you mean 'inputs'"),
    "long unknown field": (as_json(**{"x" * 50_000 + "\n": 1}), None, "unknown field 'xxx"),
    "number as id": (as_json(id=7), None, "id: input should be a valid string, got 7"),
    "unknown parameter": (*parameters(stepz=1), "did you mean 'steps'"),
    "sequence": (*parameters(sequence_id=3), "unknown field 'sequence_id'"),
    "no steps": (*parameters(steps=0), "steps"),
    "huge steps": (*parameters(steps=10**300), "steps"),
    "true steps": (*parameters(steps=True), "steps"),
    "other priority": (*parameters(priority="urgent"), "'high', 'normal', 'low'"),
    "negative priority": (*parameters(priority=-1), "from 0 on"),
    "true priority": (*parameters(priority=True), "from 0 on"),
    "negative timeout": (*parameters(timeout=-1), "timeout"),
    "timeout as text": (*parameters(timeout="1"), "timeout"),
    "no deadline": (*parameters(deadline_ms=0), "deadline_ms"),
    "NaN deadline": (*parameters(deadline_ms=float("nan")), "deadline_ms"),
    "infinite deadline": (*parameters(deadline_ms=float("inf")), "deadline_ms"),
    "unknown input": (*given(name="seeds"), "did you mean 'seed'"),
    "input of another model": (*given(name="guidance"), "no input 'guidance'"),
    "only a label": (*given(name="label"), "'seed' is missing"),
    "twice": (as_json(inputs=2 * json.loads(given()[0])["inputs"]), None, "given twice"),
    "no name": (*given(name=None), "name is missing"),
    "no shape": (*given(shape=None), "shape is missing"),
    "no data": (*given(data=None), "neither data"),
    "shape as text": (*given(shape="2"), "shape"),
    "shape of floats": (*given(shape=[2.0]), "shape"),
    "negative shape": (*given(shape=[-2]), "negative shape"),
    "two negative sizes": (*given(shape=[-1, -2]), "negative shape"),
    "overflowing shape": (*given(shape=[2**32, 2**32]), "more than the 256 elements"),
    "astronomical shape": (*given(shape=[10**300] * 8), "more than the 256 elements"),
    "overflow to nothing": (*given(shape=[2**63, 2**63, 0], data=[]), "shape"),
    "many dimensions": (*given(shape=[1] * 10_000), "shape"),
    "no dimensions": (*given(shape=[], data=[1]), r"expected \[B\]"),
    "columns": (*given(shape=[1, 2]), r"expected \[B\]"),
    "nothing to do": (*given(shape=[0], data=[]), "empty"),
    "10,000 seeds": (as_json(range(10_000)), None, "more than the 256 elements"),
    "more data than shape": (*given(data=list(range(100_000))), "100000 values for shape"),
    "less data than shape": (*given(data=[1]), "1 values for shape"),
    "ragged": (*given(shape=[2, 1], data=[[1], [2, 3]]), "not nested"),
    "nested too deep": (*given(shape=[2, 1], data=[[[1]], [[2]]]), r"\[1\] is no INT64"),
    "nested by halves": (*given(data=[1, [2]]), r"\[2\] is no INT64"),
    "other datatype": (*given(datatype="BOOL"), "datatype"),
    "numpy's datatype": (*given(datatype="int64"), "datatype"),
    "text as number": (*given(data=["1", "2"]), "'1' is no INT64"),
    "true as number": (*given(data=[True, 2]), "True is no INT64"),
    "null as number": (b'{"inputs":[{"name":"seed","shape":[1],"datatype":"INT64","data":[null]}]}',
                       None, "None is no INT64"),
    "float as integer": (*given(data=[1.0, 2]), "1.0 is no INT64"),
    "NaN as integer": (*given(data=[float("nan"), 2]), "nan is no INT64"),
    "NaN as float": (*given(data=[float("nan"), 2], datatype="FP32"), "nan is no FP32"),
    "infinite float": (*given(data=[float("inf"), 2], datatype="FP64"), "inf is no FP64"),
    "float too large": (*given(data=[1e39, 2], datatype="FP32"), r"1e\+39 is no FP32"),
    "integer too large": (*given(data=[256, 2], datatype="UINT8"), "256 is no UINT8"),
    "integer far too large": (*given(data=[10**4000, 2], datatype="FP64"), "is no FP64"),
    "negative seed": (*given(data=[-1, 2]), "-1 is out of range"),
    "seed too large": (*given(data=[2**63, 2], datatype="UINT64"), "out of range"),
    "seeds as text": (*given(data=["a", "b"], datatype="BYTES"), "expected INT64"),
    "number as text": (*given(data=[1, 2], datatype="BYTES"), "1 is no BYTES"),
    "shared memory": (*given(parameters={"shared_memory_region": "x"}), "unknown field"),
    "no such label": (*with_label(data=[1, 10]), "label: 10 is out of range"),
    "no such name": (*with_label(data=["a", "k"], datatype="BYTES"), "no class 'k'"),
    "a long name": (*with_label(data=["a", "k" * 100_000], datatype="BYTES"), "no class 'kkk"),
    "one label": (*with_label(shape=[1], data=[1]), r"expected \[2\]"),
    "unknown output": (as_json(outputs=[{"name": "images"}]), None, "did you mean 'image'"),
    "output twice": (as_json(outputs=[{"name": "image"}] * 2), None, "asked for twice"),
    "classification": (as_json(outputs=[{"name": "image", "parameters": {"classification": 3}}]),
                       None, "unknown field 'classification'"),
    "negative header length": (*binary(length="-1"), "expected a number"),
    "header length of words": (*binary(length="ten"), "expected a number"),
    "header length of fractions": (*binary(length="1e3"), "expected a number"),
    "header length in Bengali": (*binary(length="৪"), "expected a number"),
    "empty header length": (*binary(length=""), "expected a number"),
    "no JSON before the binary": (*binary(length="0"), "not JSON"),
    "header length beyond the body": (*binary(length="9999"), "exceeds"),
    "astronomical header length": (*binary(length="9" * 10_000), "exceeds"),
    "header length into the binary": (binary()[0], str(len(binary()[0]) - 1), "trailing|not JSON"),
    "binary without header length": (json.dumps({"inputs": [{
        "name": "seed", "shape": [0], "datatype": "INT64",
        "parameters": {"binary_data_size": 0}}]}).encode(), None, "Content-Length"),
    "data and binary": (*given(parameters={"binary_data_size": 16}), "not both"),
    "negative size": (*binary(size=-16), "binary_data_size"),
    "size beyond the body": (*binary(size=2**62), "16 bytes are left"),
    "size of another shape": (*binary(tail=bytes(24), size=24), "24 bytes for shape"),
    "size of another datatype": (*binary(datatype="INT32"), "16 bytes for shape"),
    "trailing bytes": (*binary(tail=bytes(17)), "1 bytes follow"),
    "bytes that nobody wants": (as_json() + b"xy", str(len(as_json())), "2 bytes follow"),
    "strings without lengths": (*strings(b"abc"), "ends after"),
    "a string too long": (*strings(b"\xff\xff\xff\xff"), "ends after"),
    "one string of two": (*strings(b"\1\0\0\0a"), "exactly the 2 strings"),
    "three strings of two": (*strings(b"\0\0\0\0" * 3), "exactly the 2 strings"),
    "a string of no text": (*strings(b"\1\0\0\0\xff\0\0\0\0"), "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "length", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_body_is_refused_with_one_line_at_once(body, length, message):
    started = time.thread_time()
    with pytest.raises(RequestError, match=message) as refused:
        asked(body, length)
    assert time.thread_time() - started < PATIENCE_S
    assert refused.value.status in (400, 422)
    line = str(refused.value)
    assert line.isprintable()
    assert len(line) < 400


def test_guidance_is_finite_in_range_and_for_guided_models_only():
    seed = tensor("seed", np.array([1]), "INT64")
    for wrong in (np.nan, np.inf, 0.5, 1.2, 1e300, -1e300):
        scale = tensor("guidance", np.array([wrong]), "FP64")
        with pytest.raises(RequestError, match=r"'guidance': .* is out of range"):
            asked(*written(seed, scale), spec=GUIDED)
    with pytest.raises(RequestError, match=r"no input 'label'; this model takes seed$"):
        asked(*written(seed, tensor("label", np.array([1]), "INT64")), spec=VECTORS)
    assert asked(*written(seed), spec=VECTORS)[1] == [("sample", True)]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_goes_there_and_back_and_is_what_the_official_client_does(encoding):
    packed = {"gzip": gzip, "deflate": zlib}[encoding].compress(as_json())
    assert decompress(packed, encoding.upper(), len(as_json())) == as_json()
    body = encode(HEAD, [Output("seed", np.arange(1000), True)])
    reply = triton.InferenceServerClient.parse_response_body(
        compress(body.content, encoding), False, body.json_bytes, encoding
    )
    np.testing.assert_array_equal(reply.as_numpy("seed"), np.arange(1000))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_decompression_bomb_is_refused_with_413_and_never_unpacked(encoding):
    bomb = compress(bytes(20_000_000), encoding)
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="exceeds 1000 bytes when decompressed") as refused:
            decompress(bomb, encoding, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.status == 413
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("packed", "encoding", "message"),
    [
        (gzip.compress(b"{}", mtime=0)[:-1], "gzip", "stops before the end"),
        (gzip.compress(b"{}", mtime=0) + b"x", "gzip", "goes on after the end"),
        (gzip.compress(b"{}", mtime=0) * 2, "gzip", "goes on after the end"),
        (b"", "gzip", "stops before the end"),
        (b"{}", "gzip", "is not gzip"),
        (zlib.compress(b"{}"), "gzip", "is not gzip"),
        (b"{}", "br", "expected gzip or deflate"),
        (b"{}", "gzip, gzip", "expected gzip or deflate"),
        (b"{}", "x" * 100_000, "expected gzip or deflate"),
    ],
)
def test_a_stream_that_is_not_what_it_says_is_refused(packed, encoding, message):
    with pytest.raises(RequestError, match=message) as refused:
        decompress(packed, encoding, 1000)
    assert refused.value.status == 400
    assert len(str(refused.value)) < 200


def test_only_a_client_that_names_one_compression_alone_gets_it():
    assert wanted_encoding("gzip") == "gzip"
    assert wanted_encoding(" Deflate ") == "deflate"
    for other in (None, "", "identity", "br", "gzip, deflate", "gzip;q=0", "*"):
        assert wanted_encoding(other) is None


def test_random_mutations_are_read_or_refused_and_nothing_else():
    dice = np.random.default_rng(0)
    label = tensor("label", np.array([b"a", b"b"], object), "BYTES")
    originals = [
        written(tensor("seed", np.array([1, 2]), "INT64"), label, priority=1, timeout=5),
        written(tensor("seed", np.array([1.0, 2.0]), "FP64", binary=False), request_id="7"),
    ]
    read, refusals = 0, []
    for k in range(4_000):
        body, length = originals[k % 2]
        mutated = bytearray(body)
        for _ in range(dice.integers(1, 4)):
            at = int(dice.integers(len(mutated)))
            mutated[at : at + int(dice.integers(3))] = dice.bytes(int(dice.integers(3)))
        try:
            asked(bytes(mutated), length)
            read += 1
        except RequestError as e:
            refusals.append((e.status, str(e)))
    assert read > 100
    assert len(refusals) > 100
    assert {status for status, _ in refusals} <= {400, 422}
    assert all(line.isprintable() for _, line in refusals)
