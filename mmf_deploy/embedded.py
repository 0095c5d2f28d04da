"""The trained bundle inside the package, which the tools use when no other is named.

python -m mmf_deploy.embedded RUN   keeps, beside it, the weights it was made from
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from mmf_deploy import checkpoint, files

ASSETS = Path(__file__).parent / "assets"


def digits_bundle() -> Path:
    """The directory of the embedded bundle: 8 × 8 handwritten digits, ten classes."""
    return ASSETS / "digits"


def digits_checkpoint() -> Path:
    """The directory of the checkpoint it was made from, for the PyTorch baseline."""
    return ASSETS / "digits-checkpoint"


def keep(run: Path, target: Path) -> None:
    """Copy a checkpoint with the weights to sample with and nothing to train on with.

    Raises:
        CheckpointError: there is none.
    """
    found = checkpoint.read(run)
    weights = f"{found.default_weights()}.safetensors"
    record = json.loads((found.path / "meta.json").read_text())
    record["files"] = {name: record["files"][name] for name in (weights, "config.yaml")}
    with files.atomic_directory(target) as temporary:
        for name in record["files"]:
            shutil.copyfile(found.path / name, temporary / name)
        (temporary / "meta.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    keep(Path(sys.argv[1]), digits_checkpoint())
