"""The error tree, and the two helpers that word its messages."""

from __future__ import annotations

import sys

import pytest

from mmf_deploy import errors
from mmf_deploy.errors import ConfigError, DependencyError, MMFError, OverloadedError, RequestError

TREE = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, MMFError)]


@pytest.mark.parametrize("error", TREE)
def test_every_error_stands_in_the_tree_of_the_docstring(error):
    assert error.__name__ in errors.__doc__


@pytest.mark.parametrize("error", TREE)
def test_every_error_has_a_failing_exit_code_and_only_a_persons_words_have_two(error):
    assert error.exit_code == (2 if error is ConfigError else 1)


def test_request_error_carries_what_http_needs():
    error = RequestError("n = 0: expected 1 or more", field="n", status=400, code="too_small")
    assert (str(error), error.field) == ("n = 0: expected 1 or more", "n")
    assert (error.status, error.code) == (400, "too_small")


def test_overload_says_when_to_come_back():
    error = OverloadedError("busy", retry_after_s=1.25)
    assert (error.retry_after_s, error.status, error.field) == (1.25, 503, None)


@pytest.mark.parametrize("name", ["onnxruntim", "onnx-runtime", "onxruntime"])
def test_nearest_valid_name_is_suggested(name):
    assert errors.nearest(name, ["pytorch", "onnxruntime"]) == " (did you mean 'onnxruntime'?)"


def test_nothing_is_suggested_where_nothing_is_near():
    assert errors.nearest("zzz", ["pytorch", "onnxruntime"]) == ""
    assert errors.nearest("x", []) == ""


def test_required_module_is_imported():
    assert errors.require("json.decoder", "train") is sys.modules["json.decoder"]


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.part"])
def test_missing_package_is_named_with_the_extra_that_brings_it(module):
    with pytest.raises(DependencyError) as caught:
        errors.require(module, "gpu")
    assert "'no_such_package'" in str(caught.value)
    assert 'pip install "mmf-deploy[gpu]"' in str(caught.value)


def test_package_broken_by_a_missing_dependency_of_its_own_is_not_called_missing(
    tmp_path, monkeypatch
):
    (tmp_path / "half_installed.py").write_text("import a_dependency_that_is_absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_dependency_that_is_absent"):
        errors.require("half_installed", "train")
