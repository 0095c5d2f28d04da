"""A user's own network, u(x, r, t, …), becomes something that can be exported."""

import itertools
import sys
import textwrap

import pytest
import torch
from mmf_deploy.export.importers.module import from_module, spec_from_flags, state_hash
from safetensors.torch import save_file

from mmf_deploy import files
from mmf_deploy.errors import CheckpointError, ConfigError
from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

IMAGES = SampleSpec(shape=(3, 4, 4))
NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=1):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, {parameters}):
        {body}

def build(width=1):
    return Net(width)

pair = (1, 2)
made = Net()
def boom(): raise RuntimeError("no luck\\ntoday")
def words(): return "words"
"""
PLAIN = "return self.norm(self.mix(x)) * (1 + t - 0.5 * r).reshape(-1, 1, 1, 1)"
_number = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of its own name into the current directory; returns that name."""
    monkeypatch.chdir(tmp_path)

    def write(parameters="x, r, t", body=PLAIN, text=NETWORK):
        name = f"user_network_{next(_number)}"
        indented = textwrap.indent(body, 8 * " ").lstrip()
        source = text.replace("{parameters}", parameters).replace("{body}", indented)
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def x1(count=4, shape=IMAGES.shape):
    return torch.from_numpy(gaussian_batch(range(count), shape))


def weights_of(name, seed=1):
    """Other weights than the module's own first ones, with statistics of its own."""
    torch.manual_seed(seed)
    net = sys.modules[name].build()
    net.norm.running_mean += 0.25
    return net.state_dict()


@torch.inference_mode()
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_sampler_of_a_users_network_is_noise_minus_its_velocity(ending, module, tmp_path):
    name = module()
    from_module(f"{name}:build", None, IMAGES)  # imports it
    state, file = weights_of(name), tmp_path / f"w{ending}"
    (save_file if ending == ".safetensors" else torch.save)(state, file)
    origin = from_module(f"{name}:build", file, IMAGES)
    net = sys.modules[name].build()
    net.load_state_dict(state)
    net.eval()
    x = x1()
    expected = x - net(x, torch.zeros(len(x)), torch.ones(len(x)))
    torch.testing.assert_close(Sampler(origin.net)(x)[0], expected, rtol=0, atol=0)
    assert not origin.net.training
    assert origin.spec == IMAGES
    assert origin.source.weights == f"w{ending}"
    assert origin.source.weights_sha256 == files.sha256(file)
    assert origin.source.parameters == 12 + 6
    assert origin.default_name == name


def test_command_says_everything_that_exports_it_again(module, tmp_path):
    spec = SampleSpec(shape=(3, 4, 4), classes=5, guidance=(1, 4.5))
    name = module("x, r, t, label, guidance")
    origin = from_module(f"{name}:build", None, spec)
    assert origin.source.command == (
        f"mmf-export --module {name}:build --shape 3,4,4 --classes 5 --guidance-range 1,4.5"
    )
    name = module()
    from_module(f"{name}:build", None, IMAGES)
    torch.save(weights_of(name), tmp_path / "w.pth")
    origin = from_module(f"{name}:build", tmp_path / "w.pth", IMAGES)
    assert origin.source.command == (
        f"mmf-export --module {name}:build --shape 3,4,4 --weights w.pth"
    )


def test_without_a_file_the_hash_is_that_of_the_state(module):
    torch.manual_seed(0)
    name = module()
    origin = from_module(f"{name}:build", None, IMAGES)
    assert origin.source.weights_sha256 == state_hash(origin.net.net)
    other = from_module(f"{name}:build", None, IMAGES)  # other random weights
    assert other.source.weights_sha256 != origin.source.weights_sha256


def test_class_in_a_package_is_a_factory_and_gets_its_arguments(module, tmp_path):
    name = module()
    (tmp_path / f"{name}_package").mkdir()
    (tmp_path / f"{name}.py").rename(tmp_path / f"{name}_package" / "nets.py")
    reference = f"{name}_package.nets:Net"
    origin = from_module(reference, None, IMAGES, {"width": 3})
    assert origin.recipe == {"name": "nets", "module": reference, "arguments": {"width": 3}}
    with pytest.raises(ConfigError, match=r"called with depth: .*unexpected.*'depth'"):
        from_module(reference, None, IMAGES, {"depth": 3})


@torch.inference_mode()
@pytest.mark.parametrize(
    ("parameters", "spec"),
    [
        ("x, r, t", IMAGES),
        ("z, t, r", IMAGES),
        ("x, *, t, r", IMAGES),
        ("x, r, t, label=None, guidance=None", IMAGES),
        ("x, r, t, dropout=0.0", IMAGES),
        ("x, label, t, r", SampleSpec(shape=(3, 4, 4), classes=5)),
        ("x, r, t, guidance, label=None", SampleSpec(shape=(3, 4, 4), guidance=(1, 4))),
        ("x, r, t, label, guidance", SampleSpec(shape=(3, 4, 4), classes=5, guidance=(1, 4))),
        ("x, **rest", SampleSpec(shape=(3, 4, 4), classes=5, guidance=(1, 4))),
    ],
)
def test_inputs_are_passed_by_name_in_whatever_order(parameters, spec, module):
    body = """
rest = {**locals().get("rest", {}), **{k: v for k, v in locals().items() if k not in ("x", "z")}}
x = locals().get("x", locals().get("z"))
u = x * rest["t"].reshape(-1, 1, 1, 1) + 10 * rest["r"].reshape(-1, 1, 1, 1)
for name, scale in (("label", 100), ("guidance", 1000)):
    if rest.get(name) is not None:
        u = u + scale * rest[name].reshape(-1, 1, 1, 1)
return u.float()
"""
    net = from_module(f"{module(parameters, body.strip())}:build", None, spec).net
    label = torch.tensor([0, 1, 4, 2]) if spec.conditional else None
    guidance = torch.tensor([1.0, 2.0, 3.0, 4.0]) if spec.guided else None
    expected = 0.5 * x1() + 10 * 0.25
    for value, scale in ((label, 100), (guidance, 1000)):
        if value is not None:
            expected = expected + scale * value.reshape(-1, 1, 1, 1)
    u = net(x1(), torch.tensor([0.25]), torch.tensor([0.5]), label, guidance)
    torch.testing.assert_close(u, expected)


@torch.inference_mode()
@pytest.mark.parametrize(
    "body",
    [
        "return torch.cat([x, t[:, None, None, None].expand(-1, 1, 4, 4)], 1)[:, 1:]",
        "assert t.shape[0] == x.shape[0]\nreturn x * t.reshape(-1, 1, 1, 1)",
        "return x * t.sum()",
    ],
    ids=["concatenated", "asserted", "summed"],
)
def test_network_that_needs_a_time_a_sample_gets_one(body, module):
    net = from_module(f"{module(body=body)}:build", None, IMAGES).net
    many = net(x1(), torch.zeros(4), torch.ones(4))
    torch.testing.assert_close(net(x1(), torch.zeros(1), torch.ones(1)), many, rtol=0, atol=0)
    assert net.expand_times


def test_network_that_takes_one_time_for_all_keeps_it(module):
    # so that the whole time embedding folds away in the exported graph
    assert not from_module(f"{module()}:build", None, IMAGES).net.expand_times


CONDITIONAL = SampleSpec(shape=(3, 4, 4), classes=5)
GUIDED = SampleSpec(shape=(3, 4, 4), guidance=(1, 4))


@pytest.mark.parametrize(
    ("parameters", "spec", "message"),
    [
        ("x, t", IMAGES, r"forward\(x, t\): expected x first, and inputs named r, t; r missing"),
        ("x, time, r", IMAGES, "t missing"),
        ("*inputs", IMAGES, "expected x first"),
        ("x, r, t", CONDITIONAL, "inputs named r, t, label; label missing"),
        ("x, r, t", GUIDED, "guidance missing"),
        ("x, r, t, label", IMAGES, "needs 'label', which .* give --classes N"),
        ("x, r, t, guidance", IMAGES, "needs 'guidance', which .* give --guidance-range 1,4"),
        ("x, r, t, text", IMAGES, "needs 'text', which .* give it a default"),
    ],
)
def test_other_signatures_are_one_line(parameters, spec, message, module):
    with pytest.raises(ConfigError, match=message) as caught:
        from_module(f"{module(parameters)}:build", None, spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return x[:, :1]", r"gave torch\.float32 \[2, 1, 4, 4\], expected torch\.float32 \[2, 3,"),
        ("return x.double()", r"gave torch\.float64 \[2, 3, 4, 4\], expected"),
        ("return x, t", "gave tuple, expected"),
        ("return x / r.reshape(-1, 1, 1, 1)", "gave numbers that are not finite"),
        ("return x @ torch.ones(7)", r"forward failed on x \[2, 3, 4, 4\].*RuntimeError"),
    ],
)
def test_network_that_is_no_velocity_is_one_line(body, message, module):
    with pytest.raises(ConfigError, match=message) as caught:
        from_module(f"{module(body=body)}:build", None, IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("NAME", "expected package.module:factory"),
        (":build", "expected package.module:factory"),
        ("NAME:", "expected package.module:factory"),
        ("no_such_module_here:build", "no module 'no_such_module_here' in .* or among"),
        ("NAME:biuld", r"has no 'biuld' \(did you mean 'build'\?\)"),
        ("NAME:pair", "pair is a tuple, expected a function or class"),
        ("NAME:made", "made is a Net, expected a function or class"),
        ("NAME:words", "gave a str, expected a torch.nn.Module"),
        ("NAME:boom", "the factory failed: RuntimeError: no luck today"),
    ],
)
def test_reference_that_leads_nowhere_is_one_line(reference, message, module):
    with pytest.raises(ConfigError, match=message) as caught:
        from_module(reference.replace("NAME", module()), None, IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_package_here", "importing .* failed: No module named 'no_such_package_he"),
        ("def broken(:", "importing .* failed: SyntaxError"),
        ("1 / 0", "importing .* failed: ZeroDivisionError"),
    ],
)
def test_module_that_fails_to_import_is_told_from_a_missing_one(text, message, module):
    with pytest.raises(ConfigError, match=message):
        from_module(f"{module(text=text)}:build", None, IMAGES)


def test_search_path_is_as_before(module, tmp_path):
    before = list(sys.path)
    from_module(f"{module()}:build", None, IMAGES)
    assert sys.path == before


def test_weights_that_do_not_fit_are_one_line(module, tmp_path):
    name = module()
    from_module(f"{name}:build", None, IMAGES)
    state, file = weights_of(name), tmp_path / "w.pth"
    torch.save({**state, "head": torch.ones(1), "mix.bias": torch.ones(5)}, file)
    with pytest.raises(CheckpointError, match=r"1 unused \(head\), 1 of another shape \(mix\.bias: "
                       r"found \[5\], expected \[3\]\)"):  # fmt: skip
        from_module(f"{name}:build", file, IMAGES)
    torch.save({"state_dict": state}, file)
    with pytest.raises(CheckpointError, match=r"7 missing .*7 unused \(state_dict\.mix\.weight, "):
        from_module(f"{name}:build", file, IMAGES)
    torch.save({**state, "mix.bias": torch.full((3,), torch.nan)}, file)
    with pytest.raises(CheckpointError, match=r"mix\.bias: found numbers that are not finite"):
        from_module(f"{name}:build", file, IMAGES)
    with pytest.raises(CheckpointError, match="no such file"):
        from_module(f"{name}:build", tmp_path / "absent.pth", IMAGES)


def test_flags_describe_a_sample():
    assert spec_from_flags("3,32,32", 0, None) == SampleSpec(shape=(3, 32, 32))
    assert spec_from_flags("2") == SampleSpec(shape=(2,))
    assert spec_from_flags(" 1, 8, 8", 10, "1,4.5") == SampleSpec(
        shape=(1, 8, 8), classes=10, guidance=(1.0, 4.5)
    )


@pytest.mark.parametrize(
    ("shape", "classes", "guidance", "message"),
    [
        ("", 0, None, "--shape : expected channels,height,width such as 3,32,32"),
        ("3x32x32", 0, None, "--shape 3x32x32: expected"),
        ("3,32", 0, None, r"--shape 3,32: .*expected \(C, H, W\) or \(D,\)"),
        ("4,32,32", 0, None, "--shape 4,32,32: an image has 1 or 3 channels"),
        ("3,0,32", 0, None, "--shape 3,0,32: .*all positive"),
        ("3,32,32", -1, None, r"--classes -1: expected 0 \(unconditional\) or more"),
        ("3,32,32", 0, "4", "--guidance-range 4: expected the lowest and the highest scale"),
        ("3,32,32", 0, "a,b", "--guidance-range a,b: expected"),
        ("3,32,32", 0, "4,1", "--guidance-range 4,1: .*expected 1 <= low <= high"),
        ("3,32,32", 0, "1,inf", "--guidance-range 1,inf: "),
        ("3,32,32", 0, "nan,2", "--guidance-range nan,2: "),
    ],
)
def test_flags_that_describe_none_are_one_line(shape, classes, guidance, message):
    with pytest.raises(ConfigError, match=message):
        spec_from_flags(shape, classes, guidance)
