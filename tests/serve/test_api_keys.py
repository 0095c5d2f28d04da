"""API keys: a file of hashes, a ring that compares in constant time, and the command."""

from __future__ import annotations

import datetime
import hmac
import logging
import os
import stat
import sys

import pytest
import yaml
from mmf_deploy.serve import api_keys, key_file
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.key_file import Key, digest_of, new_key

from mmf_deploy import cli
from mmf_deploy.errors import ConfigError, RequestError

HASH = "0" * 64


def key_of(name="ci", secret="mmf_x", **fields) -> Key:
    return Key(name=name, sha256=digest_of(secret).hex(), **fields)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.yaml"


def write_rows(file, *rows, mode=0o600):
    file.write_text(yaml.safe_dump(list(rows)))
    file.chmod(mode)


def test_a_new_key_has_the_prefix_and_256_random_bits():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("mmf_") and len(key) == 4 + 43 for key in keys)


def test_a_ring_finds_the_entry_of_a_key_and_of_no_other():
    ring = KeyRing([key_of("a", "mmf_1"), key_of("b", "mmf_2")])
    assert ring.match("mmf_1").name == "a"
    assert ring.match("mmf_2").name == "b"
    for wrong in ("", "mmf_", "mmf_3", "MMF_1", "mmf_1 ", "\udcff", "é", "\0", HASH):
        assert ring.match(wrong) is None
    assert ring.match(digest_of("mmf_1").hex()) is None  # a stolen file opens nothing


@pytest.mark.parametrize("presented", ["mmf_0", "mmf_4", "mmf_none"])
def test_a_key_is_compared_in_constant_time_with_every_entry(monkeypatch, presented):
    ring = KeyRing([key_of(f"k{i}", f"mmf_{i}") for i in range(5)])
    compared = []

    def counting(a, b):
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(api_keys, "hmac", type("Hmac", (), {"compare_digest": counting}))
    ring.match(presented)
    assert compared == [(32, 32)] * 5


def test_a_key_of_a_megabyte_is_refused_without_hashing_it(monkeypatch):
    hashed = []
    monkeypatch.setattr(api_keys, "digest_of", lambda key: hashed.append(key) or digest_of(key))
    ring = KeyRing([key_of()])
    assert ring.match("x" * 1_000_000) is None
    assert hashed == []
    assert ring.match("mmf_x").name == "ci"
    assert hashed == ["mmf_x"]


def test_a_key_is_valid_through_its_last_day():
    last = datetime.date(2027, 1, 31)
    key = key_of(expires=last)
    assert not key.expired(last)
    assert key.expired(last + datetime.timedelta(days=1))
    assert not key_of().expired(datetime.date.max)


def test_a_key_for_some_models_is_refused_others_by_name():
    key = key_of(models=["digits", "faces"])
    key.allow("digits")
    key_of().allow("anything")
    with pytest.raises(RequestError, match=r"'cats'; it is for digits, faces$") as e:
        key.allow("cats")
    assert (e.value.status, e.value.code) == (403, "model_not_allowed")


def test_what_is_written_is_read_back(file):
    keys = [
        key_of("on", "mmf_1"),  # a word that YAML takes for true
        key_of("007", "mmf_2", images_per_s=2.5, burst=7, models=["a", "b"]),
        key_of("c", "mmf_3", expires=datetime.date(2027, 1, 31)),
    ]
    key_file.write(file, keys)
    assert KeyRing.read(file).keys == keys
    assert "mmf_1" not in file.read_text()
    assert list(file.parent.iterdir()) == [file]


def test_a_new_file_is_for_its_owner_alone_and_an_old_one_keeps_its_mode(file):
    key_file.write(file, [])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    link = file.with_name("link.yaml")
    link.symlink_to(file)
    key_file.write(link, [key_of()])
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert len(key_file.read(file)) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"sha256": HASH}, "entry 1: name: field required"),
        ({"name": "a b", "sha256": HASH}, "name: expected 1 to 64 letters, digits"),
        ({"name": "a\n", "sha256": HASH}, "name: expected 1 to 64 letters, digits"),
        ({"name": True, "sha256": HASH}, "entry 1: name: expected 1 to 64"),
        ({"name": "ci"}, "entry 1 ('ci'): sha256: field required"),
        ({"name": "ci", "sha256": "mmf_secret"}, "sha256: expected the 64 lower-case hex"),
        ({"name": "ci", "sha256": "A" * 64}, "sha256: expected the 64 lower-case hex"),
        ({"name": "ci", "sha_256": HASH}, "sha256: field required"),
        ({"name": "ci", "sha256": HASH, "expire": 1}, "'expire' (did you mean 'expires'?)"),
        ({"name": "ci", "sha256": HASH, "images_per_s": 0}, "images_per_s: input should be gr"),
        ({"name": "ci", "sha256": HASH, "images_per_s": float("nan")}, "images_per_s: input sh"),
        ({"name": "ci", "sha256": HASH, "images_per_s": "5"}, "images_per_s: input should be"),
        ({"name": "ci", "sha256": HASH, "images_per_s": 1, "burst": 0}, "burst: input should be"),
        ({"name": "ci", "sha256": HASH, "burst": 5}, "burst needs images_per_s"),
        ({"name": "ci", "sha256": HASH, "expires": 20270131}, "expires: expected a date such"),
        ({"name": "ci", "sha256": HASH, "expires": "soon"}, "expires: expected a date such"),
        ({"name": "ci", "sha256": HASH, "models": []}, "models: list should have at least 1"),
        ("mmf_secret", "entry 1: expected name, sha256, …; got a str"),
    ],
)
def test_a_wrong_entry_is_one_line_that_names_it_and_shows_no_secret(file, row, said):
    write_rows(file, row)
    with pytest.raises(ConfigError) as e:
        KeyRing.read(file)
    line = str(e.value)
    assert line.startswith(f"{file}: entry 1")
    assert said in line
    assert "\n" not in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a list of keys (`[]` for none), got nothing"),
        ("name: ci", "expected a list of keys (`[]` for none), got a dict"),
        ("- {name: ci", "not YAML: "),
        ("- expires: 2027-99-99", "not YAML: month must be in 1..12"),
        ("[" * 400, "not YAML: "),
        ("\0", "not YAML: "),
    ],
)
def test_a_file_that_is_no_list_is_refused_in_one_line(file, text, said):
    file.write_text(text)
    with pytest.raises(ConfigError) as e:
        KeyRing.read(file)
    assert str(e.value).startswith(f"{file}: {said}")
    assert "\n" not in str(e.value)


def test_a_missing_file_says_how_to_make_one(file):
    with pytest.raises(ConfigError, match=r"no such file; mmf api-keys add .* --name NAME"):
        KeyRing.read(file)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        KeyRing.read(file.parent)


def test_names_and_hashes_are_unique(file):
    write_rows(file, {"name": "a", "sha256": HASH}, {"name": "a", "sha256": "1" * 64})
    with pytest.raises(ConfigError, match=r"entries 1 and 2 have the same name 'a'; remove"):
        KeyRing.read(file)
    write_rows(file, {"name": "a", "sha256": HASH}, {"name": "b", "sha256": HASH})
    with pytest.raises(ConfigError, match=r"entries 1 and 2 have the same sha256; remove"):
        KeyRing.read(file)


@pytest.mark.parametrize(
    ("mode", "said"), [(0o604, "read"), (0o620, "change"), (0o602, "change"), (0o640, None)]
)
def test_a_file_that_others_can_read_or_change_is_said_in_the_log(file, caplog, mode, said):
    write_rows(file, {"name": "a", "sha256": HASH}, mode=mode)
    with caplog.at_level(logging.WARNING):
        KeyRing.read(file)
    lines = [r.getMessage() for r in caplog.records]
    expected = f"{file}: other users can {said} the API keys; chmod 600 {file}"
    assert lines == ([expected] if said else [])


def test_a_reload_takes_the_new_file_or_keeps_the_old_ring(file, caplog):
    key_file.write(file, [key_of("a", "mmf_1")])
    ring = KeyRing.read(file)
    key_file.write(file, [key_of("b", "mmf_2")])
    assert ring.reload()
    assert ring.match("mmf_1") is None
    assert ring.match("mmf_2").name == "b"
    for spoil in (lambda: file.write_text("- name: c"), file.unlink, file.mkdir):
        spoil()
        assert not ring.reload()
        assert ring.match("mmf_2").name == "b"
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(said) == 3
    assert all(line.startswith(f"the API keys stay as they were: {file}: ") for line in said)


@pytest.fixture
def mmf(monkeypatch, capsys):
    """Runs `mmf api-keys …`; gives exit code, stdout, stderr."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mmf", "api-keys", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = e.code or 0
        return code, *capsys.readouterr()

    return run


def test_a_key_goes_to_stdout_once_and_works_until_it_is_revoked(mmf, file):
    code, out, err = mmf("add", file, "--name", "ci", "--images-per-s", 5)
    assert code == 0
    key = out.strip()
    assert key.startswith("mmf_")
    assert key not in err
    assert key not in file.read_text()
    ring = KeyRing.read(file)
    assert ring.match(key).images_per_s == 5
    code, out, err = mmf("revoke", file, "--name", "ci")
    assert (code, out) == (0, "")
    assert "revoked ci; 0 left" in err
    assert ring.reload()
    assert ring.match(key) is None


def test_the_list_shows_limits_and_no_hash_in_full(mmf, file):
    mmf("add", file, "--name", "ci", "--images-per-s", 5, "--expires", "2020-01-31")
    mmf("add", file, "--name", "two", "--model", "digits", "--model", "faces")
    code, out, _ = mmf("list", file)
    rows = [line.split() for line in out.splitlines()]
    hashes = [key.sha256 for key in key_file.read(file)]
    assert code == 0
    assert rows[1] == ["ci", "5", "50", "2020-01-31", "(past)", "all", hashes[0][:8]]
    assert rows[2] == ["two", "no", "limit", "-", "never", "digits,faces", hashes[1][:8]]
    assert not any(full in out for full in hashes)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("add", "--name", "ci"), "there is a key 'ci' already"),
        (("add", "--name", "a b"), "name: expected 1 to 64 letters"),
        (("add", "--name", "x", "--burst", "3"), "burst needs images_per_s"),
        (("add", "--name", "x", "--expires", "soon"), "expires: expected a date"),
        (("revoke", "--name", "cl"), "no key 'cl' (did you mean 'ci'?); there are ci"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(mmf, file, args, said):
    mmf("add", file, "--name", "ci")
    before = file.read_bytes()
    code, out, err = mmf(args[0], file, *args[1:])
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert file.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(mmf, tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = mmf("add", tmp_path / "keys.yaml", "--name", "ci")
    assert code == 1
    assert err.count("\n") == 1


def test_a_directory_that_is_not_there_is_said_and_not_made(tmp_path):
    with pytest.raises(ConfigError, match="there is no directory"):
        key_file.write(tmp_path / "typo" / "keys.yaml", [])
    assert not (tmp_path / "typo").exists()
