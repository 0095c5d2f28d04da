"""AOTInductor: a package of compiled code (.pt2), run by PyTorch without its Python compiler.

The code is machine code for the kind of CPU (or GPU) that compiled it. A CPU that lacks one
of its instructions would end the process, so the instructions are compared before loading.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._inductor import aoti_load_package

from mmf_deploy.engines.base import Engine, EngineOptions, Output
from mmf_deploy.engines.torch_engine import device_problem
from mmf_deploy.engines.torch_modes import quiet
from mmf_deploy.errors import EngineError

FLAGS_KEY = "mmf_cpu_flags"
# families of instructions that a compiler may use; a kernel lists much else as "flags"
_INSTRUCTIONS = re.compile(
    r"(sse|ssse|avx|amx|fma|f16c|bmi|gfni|vaes|vpclmulqdq|sha_ni|adx|movbe|popcnt|abm"
    r"|asimd|sve|sme|i8mm|bf16|fp$|fphp|atomics|crc32)"
)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this CPU; empty where the system does not tell."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    listed = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(f for f in listed.partition(":")[2].split() if _INSTRUCTIONS.match(f))


class AotiEngine(Engine):
    """Runs the variant's .pt2 file. The batch is dynamic, so nothing is padded."""

    name = "aoti"
    formats = (".pt2",)
    _model: Callable[..., Any] | None = None

    @classmethod
    def unavailable(cls, options: EngineOptions) -> str | None:
        """It needs the device that is asked for."""
        return device_problem(options.device)

    def load(self) -> None:
        """Load the code and the weights, both in the package.

        Raises:
            EngineError: no such package, or compiled for another kind of machine.
        """
        path = self.bundle.file(self.variant)
        if not path.is_file():
            raise EngineError(f"{path}: gone since the bundle was verified; load it again")
        device = torch.device(self.device)
        check_package(path, device.type)
        try:
            with quiet():
                self._model = aoti_load_package(
                    str(path), device_index=-1 if device.index is None else device.index
                )
        except Exception as e:  # a RuntimeError as a rule; no class is documented
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise EngineError(f"{path}: PyTorch cannot load it: {reason}") from e

    def close(self) -> None:
        """Free the package."""
        self._model = None

    @torch.inference_mode()
    def _run(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> Output:
        if self._model is None:
            raise EngineError("engine used outside its with-block")
        if self.options.threads is not None:
            # the setting is the process's: two of these engines may take turns
            torch.set_num_threads(self.options.threads)
        given = {"noise": noise, "label": label, "guidance": guidance}
        inputs = {k: torch.from_numpy(a).to(self.device) for k, a in given.items() if a is not None}
        found = [o.cpu().numpy() for o in self._model(**inputs)]
        return Output(sample=found[0], image=found[1] if self.spec.is_image else None)


def check_package(path: Path, device: str) -> None:
    """Refuse a package that is none, or whose code is for another kind of machine.

    Args:
        device: "cpu" or "cuda".
    Raises:
        EngineError: with what it was compiled for.
    """
    try:
        with zipfile.ZipFile(path) as package:
            names = [n for n in package.namelist() if n.endswith("wrapper_metadata.json")]
            about = json.loads(package.read(names[0]))
    except (OSError, zipfile.BadZipFile, IndexError, ValueError) as e:
        raise EngineError(f"{path}: not an AOTInductor package ({e})") from e
    compiled_for = about.get("AOTI_DEVICE_KEY", device)
    if compiled_for != device:
        raise EngineError(
            f"{path}: compiled for device {compiled_for!r}, not {device!r}; "
            f"pass --device {compiled_for}"
        )
    missing = set(about.get(FLAGS_KEY, "").split()) - cpu_flags()
    if missing and cpu_flags():
        raise EngineError(
            f"{path}: compiled for a CPU with {', '.join(sorted(missing))}, which this one lacks; "
            "export it again on this machine"
        )
