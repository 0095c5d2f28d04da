"""Names and passwords, from wherever they come."""

from __future__ import annotations

import pytest
from mmf_deploy.serve.demo.guests import guests

from mmf_deploy.errors import ConfigError


def test_a_password_may_hold_colons():
    assert guests(["me:pass:word"], None) == [("me", "pass:word")]


def test_a_file_adds_to_the_options_and_may_hold_remarks(tmp_path):
    file = tmp_path / "guests"
    file.write_text("# friends\n\nyou:p w \nthem:é\n", encoding="utf-8")
    assert guests(["me:x"], file) == [("me", "x"), ("you", "p w"), ("them", "é")]


def test_without_any_everybody_may_come():
    assert guests([], None) == []


@pytest.mark.parametrize("text", ["me", ":x", "me:", ""])
def test_what_is_no_pair_is_refused_without_repeating_it(text):
    with pytest.raises(ConfigError, match=r"--auth: expected USER:PASSWORD") as caught:
        guests(["you:secret", text], None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"secret\n", r"line 1: expected USER:PASSWORD"),
        (b"# nobody\n", "names nobody"),
        (b"me:\xff\n", "cannot be read"),
        (b"me:a\nme:b\n", "'me' is given twice"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path, content, said):
    file = tmp_path / "guests"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        guests([], file)
    assert "secret" not in str(caught.value)
