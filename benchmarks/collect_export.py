"""What an export measured, from its bundle to a result file.

python benchmarks/collect_export.py BUNDLE RESULT.json COMMAND
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mmf_deploy import bundle as bundles


def collect(bundle: bundles.Bundle, command: str) -> dict[str, Any]:
    """measured.json of a bundle, with the command that made it."""
    return {
        "command": command,
        "bundle": bundle.manifest.name,
        "parameters": bundle.manifest.source.parameters,
        **bundle.measured(),
    }


if __name__ == "__main__":
    path, result, command = sys.argv[1:]
    found = collect(bundles.load(Path(path)), command)
    Path(result).write_text(json.dumps(found, indent=1) + "\n")
