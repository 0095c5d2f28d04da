"""A LitServe server of a bundle: the same file, threads, noise and PNG encoder as mmf-serve.

Started by compare.py in LitServe's own environment, with this repository on PYTHONPATH. It says
`litserve on http://127.0.0.1:PORT` when it is ready.
"""

import argparse
import socket
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from fastapi import Request, Response

from mmf_deploy import bundle, images, noise
from mmf_deploy.engines.base import EngineOptions, open_engine


class Generate(litserve.LitAPI):
    """One image of a seed, as PNG; the label is the seed's default one."""

    def __init__(self, path: Path, threads: int, **batching: Any) -> None:
        super().__init__(api_path="/v1/generate", **batching)
        self._path, self._threads = path, threads

    def setup(self, device: str) -> None:
        """Open the engine, which is the same that mmf-serve opens, and warm it up."""
        loaded = bundle.load(self._path)
        self._spec = loaded.spec
        self._engine = open_engine(None, loaded, options=EngineOptions(threads=self._threads))
        self._engine.__enter__()
        self.predict([0] * self.max_batch_size)

    # LitServe looks at these annotations: with Request it hands over the JSON of any request
    def decode_request(self, request: Request) -> int:
        """The body is that of mmf-serve; one image a request."""
        return int(request["seed"])

    def batch(self, inputs: list[int]) -> list[int]:
        """Seeds need no stacking."""
        return inputs

    def predict(self, x: int | list[int]) -> Any:
        """Images of seeds: one without batching, an array with it."""
        seeds = x if isinstance(x, list) else [x]
        spec = self._spec
        label = np.array([spec.default_label(s) for s in seeds]) if spec.conditional else None
        guidance = np.full(len(seeds), spec.guidance[0], np.float32) if spec.guidance else None
        made = self._engine.generate(noise.gaussian_batch(seeds, spec.shape), label, guidance)
        return made if isinstance(x, list) else made[0]

    def unbatch(self, output: Any) -> list[Any]:
        """An image each."""
        return list(output)

    def encode_response(self, output: Any) -> Response:
        """The PNG that mmf-serve would give."""
        return Response(content=images.encode(output), media_type="image/png")


def announce(port: int) -> None:
    """Say the address once the server is healthy."""
    url = f"http://127.0.0.1:{port}"
    while True:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            if reply.status == 200:
                print(f"litserve on {url}", flush=True)
                return
        time.sleep(0.05)


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, default=1)
    parser.add_argument("--batch-timeout", type=float, default=0.0)
    parser.add_argument("--fast-queue", action="store_true")
    parser.add_argument("--api-servers", type=int, default=1)
    given = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = Generate(
        given.bundle, given.threads,
        max_batch_size=given.max_batch_size, batch_timeout=given.batch_timeout,
    )  # fmt: skip
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=given.fast_queue)
    threading.Thread(target=announce, args=(port,), daemon=True).start()
    server.run(
        host="127.0.0.1", port=port, num_api_servers=given.api_servers, log_level="error",
        generate_client_file=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
