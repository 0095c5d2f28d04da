"""OpenVINO's own converter, openvino.convert_model(module), and NNCF's post-training int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peer import Arrays, Given, Velocity, main


class Converted:
    """The module converted, saved and compiled.

    Args:
        precision: to pin, as OpenVINO calls it; its own choice if None.
        static: whether the sizes of the inputs are fixed before compiling.
        int8: whether NNCF quantises it.
    """

    def __init__(
        self, precision: str | None = None, static: bool = True, int8: bool = False
    ) -> None:
        self._precision, self._static, self._int8 = precision, static, int8
        self.own = ("openvino", "nncf") if int8 else ("openvino",)

    def convert(self, given: Given) -> list[Path]:
        """Convert, quantise if asked for, save."""
        import openvino as ov

        model = ov.convert_model(given.network(), example_input=given.example())
        if self._int8:
            import nncf

            items = [dict(enumerate(arrays)) for arrays in given.calibrating()]
            model = nncf.quantize(model, nncf.Dataset(items), subset_size=len(items))
        path = given.folder / "model.xml"
        # saving rounds weights to fp16 by default, which would not be fp32 any more
        ov.save_model(model, path, compress_to_fp16=self._int8 or self._precision != "f32")
        return [path, path.with_suffix(".bin")]

    def open(self, given: Given) -> tuple[Velocity, str | None]:
        """Compile the file; every setting that is not asked for as it is by default."""
        import openvino as ov

        core = ov.Core()
        model = core.read_model(given.folder / "model.xml")
        if self._static:
            arrays = given.inputs(range(given.batch))
            model.reshape({k: list(a.shape) for k, a in enumerate(arrays)})
        settings: dict[str, Any] = {}
        if self._precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = self._precision
        if given.other_threads is not None:
            settings["INFERENCE_NUM_THREADS"] = given.other_threads
        compiled = core.compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()

        def velocity(arrays: Arrays) -> Any:
            return request.infer(dict(enumerate(arrays)))[0]

        hint = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
        computed = "bf16" if "bfloat16" in hint else "fp32"
        return velocity, None if self._int8 else computed


TOOLS = {
    "openvino-default": Converted(static=False),
    "openvino-bf16": Converted("bf16"),
    "openvino-f32": Converted("f32"),
    "nncf-default": Converted(int8=True),
    "nncf-f32": Converted("f32", int8=True),
}

if __name__ == "__main__":
    main(TOOLS)
