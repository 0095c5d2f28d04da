"""PyTorch's own: torch.compile with frozen weights, and int8 by torchao's PT2E quantisation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer import Arrays, Given, Velocity, main


def compiled(given: Given, module: Callable[..., Any], bf16: bool = False) -> Velocity:
    """The module through Inductor with frozen weights; compiled code is kept in the folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(given.folder / "inductor")
    import torch
    from torch._inductor import config

    config.freezing = True
    torch.set_num_threads(given.threads)
    fast = torch.compile(module)

    def velocity(arrays: Arrays) -> Any:
        low = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
        with torch.no_grad(), low:
            return fast(*map(torch.from_numpy, arrays)).float().numpy()

    return velocity


class Compiled:
    """torch.compile."""

    own = ()

    def __init__(self, bf16: bool = False) -> None:
        self._bf16 = bf16

    def convert(self, given: Given) -> list[Path]:
        """Compile once, for the cache."""
        self.open(given)[0](given.inputs(range(given.batch)))
        return []

    def open(self, given: Given) -> tuple[Velocity, str | None]:
        """Compile, from the cache."""
        return compiled(given, given.network(), self._bf16), None


class TorchAo:
    """Static int8 of convolutions and linear layers, as torchao shows it for x86.

    Its observers keep histograms, which cost many times what the others' do: it gets a quarter of
    the calibration samples.
    """

    own = ("torchao",)

    def convert(self, given: Given) -> list[Path]:
        """Export, calibrate, quantise, save; then compile once, for the cache."""
        import torch
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        torch.set_num_threads(given.threads)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        # unless strict, the graph does not tell F.conv2d, and no convolution is quantised
        graph = torch.export.export(given.network(), given.example(), strict=True).module()
        with torch.no_grad():
            prepared = prepare_pt2e(graph, quantizer)
            for arrays in given.calibrating(share=0.25):
                prepared(*map(torch.from_numpy, arrays))
            made = torch.export.export(convert_pt2e(prepared), given.example())
        path = given.folder / "model.pt2"
        torch.export.save(made, path)
        self.open(given)[0](given.inputs(range(given.batch)))
        return [path]

    def open(self, given: Given) -> tuple[Velocity, str | None]:
        """Read and compile, from the cache."""
        import torch
        import torchao.quantization.pt2e  # noqa: F401 - brings the operators of the file

        return compiled(given, torch.export.load(given.folder / "model.pt2").module()), None


TOOLS = {
    "compile": Compiled(),
    "compile-bf16": Compiled(bf16=True),
    "torchao-int8": TorchAo(),
}

if __name__ == "__main__":
    main(TOOLS)
