"""optimum-onnx: a plain ONNX file through ORTQuantizer, its int8 for CPUs with AVX-512 VNNI.

Calibration takes what the other quantisers get. ORTOptimizer is tried as its documentation says;
it asks for the configuration of a transformers model, which a network of one's own does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from peer import Given, Velocity, main
from peer_plain import export, session, with_data


class Samples:
    """Calibration samples one by one, by input; optimum puts the batches together."""

    def __init__(self, given: Given, names: list[str]) -> None:
        self._given, self._names = given, names

    def __iter__(self) -> Iterator[dict[str, object]]:
        for arrays in self._given.calibrating():
            for row in zip(*arrays, strict=True):
                yield dict(zip(self._names, row, strict=True))


class Int8:
    """Static int8 by the configuration that optimum names for this processor.

    Args:
        operators: types of node to quantise; those that optimum quantises by default if None.
    """

    own = ("optimum-onnx", "optimum", "transformers", "onnxruntime", "onnx")

    def __init__(self, operators: list[str] | None = None) -> None:
        self._operators = operators

    def convert(self, given: Given) -> list[Path]:
        """Export, calibrate, quantise."""
        import onnx
        from onnxruntime.quantization import CalibrationMethod
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig, CalibrationConfig

        path = export(given)
        names = [i.name for i in onnx.load(path, load_external_data=False).graph.input]
        quantizer = ORTQuantizer.from_pretrained(given.folder, file_name=path.name)
        wanted = AutoQuantizationConfig.avx512_vnni(
            is_static=True, operators_to_quantize=self._operators
        )
        # what AutoCalibrationConfig.minmax makes of a data set of the package datasets
        calibrating = CalibrationConfig(
            "noise", "", "", given.calibration, CalibrationMethod.MinMax
        )
        ranges = quantizer.fit(
            Samples(given, names),
            calibrating,
            onnx_augmented_model_name=str(given.folder / "augmented.onnx"),
            operators_to_quantize=wanted.operators_to_quantize,
            batch_size=given.batch,
        )
        quantizer.quantize(wanted, save_dir=given.folder, calibration_tensors_range=ranges)
        return with_data(given.folder / "model_quantized.onnx")

    def open(self, given: Given) -> tuple[Velocity, str | None]:
        """Open the quantised file."""
        return session(given, given.folder / "model_quantized.onnx"), None


class Optimised:
    """ORTOptimizer on the plain file."""

    own = Int8.own

    def convert(self, given: Given) -> list[Path]:
        """Export and optimise."""
        from optimum.onnxruntime import ORTOptimizer
        from optimum.onnxruntime.configuration import OptimizationConfig

        path = export(given)
        optimizer = ORTOptimizer.from_pretrained(given.folder, file_names=[path.name])
        optimizer.optimize(OptimizationConfig(optimization_level=99), save_dir=given.folder)
        return with_data(given.folder / "model_optimized.onnx")

    def open(self, given: Given) -> tuple[Velocity, str | None]:
        """Open the optimised file."""
        return session(given, given.folder / "model_optimized.onnx"), None


TOOLS = {
    "optimum-optimizer": Optimised(),
    "optimum-int8": Int8(),
    "optimum-conv": Int8(["Conv"]),
}

if __name__ == "__main__":
    main(TOOLS)
