"""onnxruntime-web, which runs the graph in a browser: one pinned version of its npm package.

npm fetches the package once; the few files that the page needs are kept in the user's cache
directory, checked by hash whenever they are taken from there. ``--ort-web`` takes an unpacked
package or its tarball instead, where there is no npm or no network.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from mmf_deploy.errors import ConfigError, DependencyError

log = logging.getLogger(__name__)

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
INTEGRITY = (
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
"""SHA-512 of the tarball that npm has to bring."""

FILES = {
    "ort-wasm.js": "ort.wasm.bundle.min.mjs",
    "ort-wasm.wasm.gz": "ort-wasm-simd-threaded.wasm",
    "ort-webgpu.js": "ort.webgpu.bundle.min.mjs",
    "ort-webgpu.wasm.gz": "ort-wasm-simd-threaded.asyncify.wasm",
}
"""Name in the page: name in the package's ``dist``. The first two make the first image.

``.js``, since many servers do not know ``.mjs``, and a browser runs no module that is sent as
plain bytes; ``.gz``, since most do not compress, and the page unpacks it by itself."""

Runtime = Mapping[str, bytes]
"""Files for the page, by name."""

_TIMEOUT_S = 600
_HINT = (
    f"npm pack {PACKAGE} on a machine that has npm and a network, copy the .tgz here, and give it "
    "with --ort-web"
)


def obtain(
    given: Path | None = None, on_progress: Callable[[str], None] = lambda _: None
) -> Runtime:
    """The files of the runtime.

    Args:
        given: an unpacked package, its ``dist``, or a tarball; None asks the cache, then npm.
        on_progress: called with what is being done, if it takes long.
    Raises:
        ConfigError: ``given`` is not that package, or not of that version.
        DependencyError: there is no npm, or it did not bring the package.
    """
    if given is not None:
        return _packed(_read_tarball(given) if given.is_file() else _read_folder(given))
    kept = cache_directory() / VERSION
    found = _read_cache(kept)
    if found is None:
        on_progress(f"npm fetches {PACKAGE}")
        found = _packed(_from_npm())
        _write_cache(kept, found)
    return found


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/mmf-deploy/onnxruntime-web; ~/.cache where the variable is not set."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the base directory specification has relative values ignored
    home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return home / "mmf-deploy" / "onnxruntime-web"


def _from_npm() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise DependencyError(
            f"--target web needs {PACKAGE}, and there is no npm to fetch it: install npm, or "
            f"{_HINT}"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", PACKAGE, "--pack-destination", folder, "--silent"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise DependencyError(f"npm pack {PACKAGE}: {e}; {_HINT}") from e
        tarballs = sorted(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or not tarballs:
            said = " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"
            raise DependencyError(f"npm pack {PACKAGE} failed: {said}; {_HINT}")
        found = base64.b64encode(hashlib.sha512(tarballs[0].read_bytes()).digest()).decode()
        if found != INTEGRITY:
            raise DependencyError(
                f"npm brought another {PACKAGE} than this version was made with: expected SHA-512 "
                f"{INTEGRITY}, found {found}; nothing of it was used"
            )
        return _read_tarball(tarballs[0])


def _read_tarball(path: Path) -> dict[str, bytes]:
    wanted = {f"package/dist/{name}": name for name in FILES.values()}
    wanted["package/package.json"] = "package.json"
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name in wanted else None
                if content is not None:
                    found[wanted[member.name]] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as e:
        raise ConfigError(
            f"--ort-web {path}: not a readable tarball ({e}); expected what npm pack {PACKAGE} "
            "makes"
        ) from e
    return _checked(path, found)


def _read_folder(path: Path) -> dict[str, bytes]:
    if not path.is_dir():
        raise ConfigError(
            f"--ort-web {path}: does not exist; expected the folder or the .tgz that npm pack "
            f"{PACKAGE} makes"
        )
    dist = path / "dist" if (path / "dist").is_dir() else path
    places = [dist.parent / "package.json", *(dist / name for name in FILES.values())]
    return _checked(path, {f.name: f.read_bytes() for f in places if f.is_file()})


def _checked(path: Path, found: dict[str, bytes]) -> dict[str, bytes]:
    """The files, if they are all there and of the version that the page is made for."""
    missing = [name for name in ("package.json", *FILES.values()) if name not in found]
    if missing:
        raise ConfigError(
            f"--ort-web {path}: lacks {', '.join(missing)}; expected the whole package, as "
            f"npm pack {PACKAGE} makes it"
        )
    try:
        about = json.loads(found["package.json"])
        name, version = about["name"], about["version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        name, version = "package.json that is not one of npm", ""
    if (name, version) != ("onnxruntime-web", VERSION):
        raise ConfigError(
            f"--ort-web {path}: holds {name} {version}".rstrip() + f"; expected {PACKAGE}"
        )
    return found


def _packed(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files as they lie in the page; the same bytes for the same package."""
    packed = {}
    for name, original in FILES.items():
        content = found[original]
        if name.endswith(".gz"):
            packed[name] = gzip.compress(content, 9, mtime=0)
        else:
            # the maps are megabytes for people who debug the runtime, and would be missing
            packed[name] = re.sub(rb"\n//# sourceMappingURL=\S*\s*\Z", b"\n", content)
    return packed


def _read_cache(kept: Path) -> dict[str, bytes] | None:
    """What ``_write_cache`` kept; None if there is nothing, or it is damaged."""
    try:
        found = {name: (kept / name).read_bytes() for name in FILES}
        hashes = json.loads((kept / "sha256.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as e:
        log.warning("%s: not readable (%s); fetched again", kept, e)
        return None
    if hashes != _hashes(found):
        log.warning("%s: damaged; fetched again", kept)
        return None
    return found


def _write_cache(kept: Path, found: Runtime) -> None:
    """Keep the files for the next export; whoever comes at the same time keeps the same."""
    temporary = None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{VERSION}-", dir=kept.parent))
        for name, content in found.items():
            (temporary / name).write_bytes(content)
        (temporary / "sha256.json").write_text(json.dumps(_hashes(found), indent=1) + "\n")
        if _read_cache(kept) is None and kept.exists():
            kept.rename(temporary / "damaged")
        if not kept.exists():
            temporary.rename(kept)
    except OSError as e:
        if _read_cache(kept) is None:  # else someone was first
            log.warning("%s: not kept, so the next export fetches it again: %s", kept, e)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _hashes(found: Runtime) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
