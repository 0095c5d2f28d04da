import inspect
from pathlib import Path

import pytest
from mmf_deploy.serve import cli
from mmf_deploy.serve.settings import LogFormat, Settings, named_models, read

from mmf_deploy.errors import ConfigError


def test_every_flag_is_a_setting_and_every_setting_a_flag():
    flags = set(inspect.signature(cli.serve).parameters)
    assert flags - {"ctx", "model", "config", "ray"} == set(Settings.model_fields) - {"models"}


def test_what_is_given_wins_over_the_file(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("port: 9000\nhost: 0.0.0.0\nlog_format: json\n")
    settings = read(file, {"port": 9001, "host": None})
    assert (settings.port, settings.host) == (9001, "0.0.0.0")
    assert settings.log_format is LogFormat.JSON
    assert settings.max_queue == 1024


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("models: {faces: bundles/faces, digits: /srv/digits}\napi_keys: keys.yaml\n")
    settings = read(file, {})
    assert settings.models == {"faces": tmp_path / "bundles/faces", "digits": Path("/srv/digits")}
    assert settings.api_keys == tmp_path / "keys.yaml"


def test_a_bundle_that_is_given_replaces_the_models_of_a_file(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("models: {faces: faces}\n")
    assert read(file, {"bundle": Path("other")}).models == {}
    file.write_text("bundle: faces\n")
    assert read(file, {"models": {"a": Path("a")}}).bundle is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 1", "serve.yaml: prot: no such setting (did you mean 'port'?)"),
        ("port: many", "serve.yaml: port: input should be a valid integer"),
        ("port: 70000", "less than or equal to 65535, got '70000'"),
        ("- port", "serve.yaml: expected lines like 'port: 8000', found a list"),
        ("port: [", "serve.yaml: not YAML at line"),
        ("models: {'../x': y}", "serve.yaml: model name '../x': expected letters"),
        ("bundle: a\nmodels: {b: c}", "either one bundle or named models"),
        ("cors: ['https://a,https://b']", "origin 'https://a,https://b': expected one like"),
        ("watch: 0", "serve.yaml: watch: input should be greater than 0"),
        ("log_format: xml", "'text' or 'json', got 'xml'"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text, said):
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read(file, {})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "missing.yaml", {})


def test_a_wrong_value_on_the_command_line_names_its_flag():
    with pytest.raises(ConfigError, match="--drain-delay: input should be greater"):
        read(None, {"drain_delay": -1})


@pytest.mark.parametrize("text", ["faces", "=path", "faces=", ""])
def test_a_model_needs_a_name_and_a_path(text):
    with pytest.raises(ConfigError):
        read(None, {"models": named_models([text])})


def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(ConfigError, match="'a' comes twice"):
        named_models(["a=b", "a=c"])
