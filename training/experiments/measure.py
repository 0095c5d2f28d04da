"""One measurement in a worker process, kept on disk so that it is made once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmf_deploy import checkpoint, files
from mmf_deploy.errors import MMFError

from .probes import PROBES
from .runs import read_json
from .scales import Scale
from .subject import Subject, Weights

VERSION = 1
"""Of what probes compute; another one measures everything anew."""


@dataclass(frozen=True)
class Request:
    """What shall be measured, as it travels to another process.

    Attributes:
        run: the directory of the run.
        root: of all runs of the scale.
    """

    run: Path
    probe: str
    root: Path
    scale: Scale
    device: str
    weights: Weights

    @property
    def kept(self) -> Path:
        """Where the numbers lie."""
        return self.root / "measured" / self.run.name / f"{self.probe}.json"

    def key(self) -> dict[str, Any]:
        """What the numbers depend on; as JSON gives it back."""
        found = checkpoint.read(self.run)
        scale = {k: v for k, v in asdict(self.scale).items() if k in _MATTERS}
        key = {"version": VERSION, "weights": found.weights_hash(), "scale": scale}
        return dict(json.loads(json.dumps(key)))

    def known(self) -> dict[str, Any]:
        """The numbers, if they were measured before; else nothing."""
        kept = read_json(self.kept)
        try:
            return dict(kept["numbers"]) if kept.get("key") == self.key() else {}
        except (MMFError, KeyError, TypeError, ValueError):
            return {}


_MATTERS = ("features", "samples", "encoded", "pairs", "test", "shifts")


def measure(request: Request) -> dict[str, Any]:
    """The numbers of a probe, which are kept on disk.

    Returns:
        ``failed`` where there are none, ``lacks`` where something is missing that would give more;
        neither is kept.
    """
    torch.set_num_threads(1)
    found = checkpoint.read(request.run)
    subject = Subject(found, request.run, request.scale, request.root / "judge", request.device,
                      request.weights)  # fmt: skip
    try:
        numbers = PROBES[request.probe].measure(subject)
    except (MMFError, RuntimeError, np.linalg.LinAlgError) as e:
        # not kept: a file that was missing, or memory, may be there the next time
        reason = str(e) if isinstance(e, MMFError) else " ".join(f"{type(e).__name__}: {e}".split())
        return {"failed": reason[:300]}
    if "lacks" in numbers:
        return numbers  # nor this: what it lacks may be there the next time
    kept = {"key": request.key(), "numbers": numbers}
    request.kept.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(request.kept, (json.dumps(kept, indent=1) + "\n").encode())
    return numbers
