"""The page of a bundle: all its files, from a package of one version, found before all else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from mmf_deploy.export import ort_web, to_web
from mmf_deploy.export.assemble import Request, export_origin
from mmf_deploy.export.ort_web import cache_directory  # before the tests' own takes its place

from mmf_deploy import bundle as bundles_module
from mmf_deploy import cli
from mmf_deploy.errors import ConfigError, DependencyError
from mmf_deploy.spec import SampleSpec

PAGE = to_web.page_folder()
RUNTIME = set(ort_web.FILES)
NPM = """#!{python}
import shutil, sys
shutil.copy({tarball!r}, sys.argv[sys.argv.index("--pack-destination") + 1])
"""


@pytest.fixture
def package(ort_package, tmp_path):
    """A copy of the package that a test may spoil."""
    return shutil.copytree(ort_package, tmp_path / "package")


@pytest.fixture
def tarball(ort_package, tmp_path):
    """The package as npm packs it."""
    path = tmp_path / "onnxruntime-web.tgz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(ort_package, "package")
    return path


@pytest.fixture
def nothing_cached(monkeypatch, tmp_path):
    """An empty cache; returns where it will lie."""
    monkeypatch.setattr(ort_web, "cache_directory", lambda: tmp_path / "cache")
    return tmp_path / "cache" / ort_web.VERSION


@pytest.fixture
def npm(monkeypatch, tmp_path):
    """``npm(script)``: from then on the only program there is on the PATH; None: there is none."""

    def install(script):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        if script is not None:
            (folder / "npm").write_text(script)
            (folder / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return install


@pytest.fixture
def working_npm(npm, tarball, monkeypatch):
    """An npm that brings what is expected."""
    sha512 = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    monkeypatch.setattr(ort_web, "INTEGRITY", sha512)
    npm(NPM.format(python=sys.executable, tarball=str(tarball)))


def refused(given, error=ConfigError) -> str:
    with pytest.raises(error) as caught:
        ort_web.obtain(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_package_is_taken_as_a_folder_its_dist_or_a_tarball(ort_package, tarball):
    found = ort_web.obtain(ort_package)
    assert set(found) == RUNTIME
    assert ort_web.obtain(ort_package / "dist") == ort_web.obtain(tarball) == found


def test_page_gets_modules_without_references_to_maps_and_packed_binaries(ort_package):
    found = ort_web.obtain(ort_package)
    for name, original in ort_web.FILES.items():
        content = (ort_package / "dist" / original).read_bytes()
        if name.endswith(".gz"):
            assert gzip.decompress(found[name]) == content
        else:
            assert b"sourceMappingURL" in content
            assert found[name] == content.partition(b"\n//#")[0] + b"\n"


def test_package_gives_the_same_bytes_whenever_it_is_packed(ort_package, monkeypatch):
    first = ort_web.obtain(ort_package)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert ort_web.obtain(ort_package) == first


def test_package_of_another_version_is_refused(package):
    (package / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.0.0"}')
    assert refused(package) == (
        f"--ort-web {package}: holds onnxruntime-web 1.0.0; expected {ort_web.PACKAGE}"
    )


@pytest.mark.parametrize("text", ["", "[]", '{"name": "onnxruntime-web"}', "[" * 100_000])
def test_package_that_does_not_say_what_it_is_is_refused(package, text):
    (package / "package.json").write_text(text)
    assert "package.json that is not one of npm; expected onnxruntime-web@" in refused(package)


def test_package_that_is_not_whole_is_refused_with_what_it_lacks(package):
    (package / "dist" / "ort.wasm.bundle.min.mjs").unlink()
    (package / "package.json").unlink()
    assert "lacks package.json, ort.wasm.bundle.min.mjs; expected the whole" in refused(package)


def test_what_is_no_package_is_refused(tmp_path, tarball):
    assert "nowhere: does not exist; expected the folder or" in refused(tmp_path / "nowhere")
    (tmp_path / "text.tgz").write_text("not a tarball")
    assert "text.tgz: not a readable tarball" in refused(tmp_path / "text.tgz")
    tarball.write_bytes(tarball.read_bytes()[:-40])
    assert "not a readable tarball" in refused(tarball)


def test_without_npm_one_line_says_what_to_do(nothing_cached, npm):
    npm(None)
    message = refused(None, DependencyError)
    assert "there is no npm to fetch it: install npm, or npm pack onnxruntime-web@" in message
    assert "--ort-web" in message


def test_npm_that_fails_is_quoted(nothing_cached, npm):
    npm("#!/bin/sh\necho 'npm error network\n is down' >&2\nexit 7\n")
    message = refused(None, DependencyError)
    assert "failed: npm error network is down; npm pack" in message
    npm("#!/bin/sh\nexit 7\n")
    assert "failed: exit code 7; npm pack" in refused(None, DependencyError)
    npm("#!/nowhere/sh\n")
    assert "No such file or directory" in refused(None, DependencyError)


def test_other_bytes_than_the_pinned_ones_are_refused_and_not_kept(nothing_cached, npm, tarball):
    npm(NPM.format(python=sys.executable, tarball=str(tarball)))
    message = refused(None, DependencyError)
    assert f"expected SHA-512 {ort_web.INTEGRITY}, found " in message
    assert not nothing_cached.exists()


def test_npm_is_asked_once(nothing_cached, working_npm, npm, ort_package):
    said = []
    first = ort_web.obtain(None, said.append)
    assert first == ort_web.obtain(ort_package)
    assert said == [f"npm fetches onnxruntime-web@{ort_web.VERSION}"]
    (nothing_cached.parents[1] / "bin" / "npm").unlink()
    assert ort_web.obtain(None, said.append) == first
    assert len(said) == 1
    assert [f.name for f in nothing_cached.parent.iterdir()] == [ort_web.VERSION]


@pytest.mark.parametrize("damage", ["ort-wasm.js", "sha256.json"])
def test_damaged_cache_is_fetched_again(nothing_cached, working_npm, caplog, damage):
    whole = ort_web.obtain()
    (nothing_cached / damage).write_text("{}")
    assert ort_web.obtain() == whole
    assert "damaged; fetched again" in caplog.text
    caplog.clear()
    assert ort_web.obtain() == whole
    assert caplog.text == ""


def test_exports_at_once_all_get_the_whole_package(nothing_cached, working_npm, ort_package):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ort_web.obtain(), range(4)))
    assert found == [ort_web.obtain(ort_package)] * 4
    assert [f.name for f in nothing_cached.parent.iterdir()] == [ort_web.VERSION]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_that_cannot_be_written_costs_no_export(nothing_cached, working_npm, caplog):
    nothing_cached.parents[1].chmod(0o500)
    assert set(ort_web.obtain()) == RUNTIME
    assert "not kept, so the next export fetches it again" in caplog.text


def test_cache_directory_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "mmf-deploy" / "onnxruntime-web"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "mmf-deploy" / "onnxruntime-web"


@pytest.fixture(scope="module")
def web_bundle(convolutions, tmp_path_factory):
    """A bundle for browsers alone."""
    folder = tmp_path_factory.mktemp("web")
    request = Request(folder, folder / "page", targets=("web",), samples=16)
    return export_origin(convolutions(), request)


def test_bundle_for_browsers_holds_the_whole_page_under_its_hashes(web_bundle):
    found = bundles_module.load(web_bundle.path)
    own = {f.name for f in PAGE.iterdir()}
    rest = {"model.web-fp32.onnx", "golden.npz", "samples.png", "README.md"}
    assert {"index.html", "style.css", "page.js", "worker.js", "noise.js"} <= own
    assert set(found.manifest.files) == own | RUNTIME | rest
    assert len(own) + len(RUNTIME) + len(rest) == len(found.manifest.files)
    assert found.manifest.versions["onnxruntime-web"] == ort_web.VERSION
    for name in own:
        assert (found.path / name).read_bytes() == (PAGE / name).read_bytes()


def test_damaged_page_is_refused_like_a_damaged_graph(web_bundle, tmp_path):
    copy = shutil.copytree(web_bundle.path, tmp_path / "copy")
    (copy / "page.js").write_text("alert(1)")
    with pytest.raises(bundles_module.BundleError, match=r"page\.js: corrupt"):
        bundles_module.load(copy)


def test_card_and_command_say_how_to_see_the_page(web_bundle):
    assert "python -m http.server -d PATH_OF_THIS_FOLDER" in (
        (web_bundle.path / "README.md").read_text()
    )
    said = to_web.page_of(web_bundle)
    assert f"see it: python -m http.server -d {web_bundle.path}" in said
    total = sum(f.stat().st_size for f in web_bundle.path.iterdir())
    assert f"{total / 1e6:.1f} MB in all" in said


def test_first_image_needs_neither_webgpu_nor_golden_images(web_bundle):
    count = to_web.first_image_bytes(web_bundle.path, web_bundle.variant())
    sizes = {f.name: f.stat().st_size for f in web_bundle.path.iterdir()}
    later = ("golden.npz", "samples.png", "README.md", "measured.json", "ort-webgpu.js",
             "ort-webgpu.wasm.gz", "onnxruntime-web.LICENSE.txt")  # fmt: skip
    assert count == sum(sizes.values()) - sum(sizes[name] for name in later)


def test_bundle_for_servers_has_no_page(bundles):
    found = bundles("unconditional")
    assert "index.html" not in found.manifest.files
    assert "onnxruntime-web" not in found.manifest.versions
    assert to_web.page_of(found) is None
    assert "http.server" not in (found.path / "README.md").read_text()


def test_page_is_for_images():
    image, vector = SampleSpec(shape=(1, 8, 8)), SampleSpec(shape=(2,))
    assert to_web.has_page(("onnxruntime-cpu", "web"), image)
    assert not to_web.has_page(("onnxruntime-cpu",), image)
    assert not to_web.has_page(("web",), vector)


def test_export_stops_before_anything_slow_where_the_runtime_is_missing(
    nothing_cached, npm, convolutions, tmp_path
):
    npm(None)
    stages = []
    request = Request(tmp_path, tmp_path / "b", targets=("web",), samples=16)
    with pytest.raises(DependencyError, match="there is no npm"):
        export_origin(convolutions(), request, lambda stage, done: stages.append(stage))
    assert [stage for stage in stages if "npm" not in stage] == []
    assert not (tmp_path / "b").exists()


def test_package_without_a_page_is_a_contradiction(monkeypatch, checkpoints, capsys, package):
    args = ["mmf-export", str(checkpoints("vector")), "--ort-web", str(package), "--dry-run"]
    monkeypatch.setattr(sys, "argv", args)
    with pytest.raises(SystemExit) as caught:
        cli.main_export()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: --ort-web goes with --target web only\n"


def test_installation_without_the_pages_files_says_so(monkeypatch):
    monkeypatch.setattr(to_web, "INDEX", "nothing.html")
    with pytest.raises(DependencyError, match="which this installation lacks: install"):
        to_web.page_folder()


def scripts():
    return {f.name: f.read_text() for f in PAGE.iterdir() if f.suffix == ".js"}


def imported(text):
    return set(re.findall(r"""^import .*?from "\./([^"]+)";""", text, re.MULTILINE | re.DOTALL))


def test_page_runs_the_version_that_is_exported():
    assert f'ORT_VERSION = "{ort_web.VERSION}"' in scripts()["worker.js"]


def test_everything_that_the_page_names_is_there():
    names = {f.name for f in PAGE.iterdir()}
    index = (PAGE / "index.html").read_text()
    linked = set(re.findall(r'(?:href|src)="(?!data:|#)([^"]+)"', index))
    made = {"README.md", "bundle.json"}
    assert linked <= names | made
    for text in scripts().values():
        assert imported(text) <= names
    dynamic = re.findall(r'import\("\./([^"]+)"\)', scripts()["worker.js"])
    assert set(dynamic) <= names


def test_page_announces_every_module_so_that_none_waits_for_another():
    index = (PAGE / "index.html").read_text()
    preloaded = set(re.findall(r'rel="modulepreload" href="([^"]+)"', index))
    needed, todo = set(), {"page.js"}
    while todo:
        name = todo.pop()
        needed.add(name)
        todo |= imported(scripts()[name]) - needed
    assert preloaded == needed


def test_page_names_no_other_machine():
    for file in PAGE.iterdir():
        if file.suffix != ".txt":
            hosts = set(re.findall(r"https?://([^/'\"\s]+)", file.read_text()))
            assert hosts <= {"www.w3.org", "localhost:8000"}, file


def test_page_refers_only_to_elements_that_exist():
    index = (PAGE / "index.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', index)
    assert len(ids) == len(set(ids))
    for name, text in scripts().items():
        assert set(re.findall(r'\$\("([^"]+)"\)', text)) <= set(ids), name
    for attribute in ("for", "aria-labelledby", "aria-describedby"):
        for value in re.findall(rf'\b{attribute}="([^"]+)"', index):
            assert set(value.split()) <= set(ids)


def test_licence_of_the_runtime_is_in_the_page():
    text = (PAGE / "onnxruntime-web.LICENSE.txt").read_text()
    for part in ("MIT License", "Copyright (c) Microsoft Corporation", "THE SOFTWARE IS PROVIDED",
                 *ort_web.FILES):  # fmt: skip
        assert part in text


def test_manifest_of_the_page_is_what_the_page_reads(web_bundle):
    found = json.loads((web_bundle.path / "bundle.json").read_text())
    [variant] = found["variants"]
    assert {"name", "file", "precision", "steps", "target", "trajectory"} <= set(variant)
    assert variant["target"] == "web"
    assert {"shape", "classes", "class_names", "guidance"} == set(found["spec"])
