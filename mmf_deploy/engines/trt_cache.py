"""Plans kept on this machine, outside the bundle: a plan belongs to a GPU and a driver."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmf_deploy import files
from mmf_deploy.engines.trt_plan import Machine, timing_key

log = logging.getLogger(__name__)


def default_directory() -> Path:
    """$XDG_CACHE_HOME/mmf-deploy/tensorrt; ~/.cache where the variable is not set."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the base directory specification has relative values ignored
    home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return home / "mmf-deploy" / "tensorrt"


class PlanCache:
    """A directory of plans by key: ``KEY.plan``, with its hash and origin in ``KEY.json``.

    TensorRT may crash on a damaged plan, so its hash is compared before anyone loads it.
    A cache that cannot be read or written costs time, never the service.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def plan_file(self, key: str) -> Path:
        """Where the plan of that key lies."""
        return self.directory / f"{key}.plan"

    def timing_file(self, machine: Machine) -> Path:
        """Where the kernel timings of a machine lie."""
        return self.directory / f"timing-{timing_key(machine)[:16]}.cache"

    def prepare(self) -> bool:
        """Make the directory; False if that is not possible, and said."""
        try:
            # plans are code for the GPU: nobody else shall be able to put one here
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            log.warning("no plan is kept, so the next start builds it again: %s", e)
            return False
        return True

    def read(self, key: str) -> bytes | None:
        """The plan of that key; None if there is none, or it is not the one that was written."""
        try:
            plan = self.plan_file(key).read_bytes()
            facts = json.loads((self.directory / f"{key}.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as e:
            log.warning("%s: not readable (%s)", self.plan_file(key), e)
            return None
        expected = facts.get("plan_sha256") if isinstance(facts, dict) else None
        if hashlib.sha256(plan).hexdigest() != expected:
            log.warning("%s: not the plan that was written", self.plan_file(key))
            return None
        return plan

    def write(self, key: str, plan: bytes, facts: Mapping[str, Any]) -> None:
        """Keep a plan, in a directory that ``prepare`` has made.

        Args:
            facts: where it came from, for a person who looks into the directory.
        """
        record = {**facts, "plan_sha256": hashlib.sha256(plan).hexdigest()}
        try:
            files.write_atomic(self.plan_file(key), plan)
            text = json.dumps(record, indent=1, sort_keys=True) + "\n"
            files.write_atomic(self.directory / f"{key}.json", text.encode())
        except OSError as e:
            log.warning("%s not kept: %s", self.plan_file(key), e)
