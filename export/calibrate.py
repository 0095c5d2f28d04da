"""The range of every activation, from noise alone.

At t = 1 the input of the network *is* N(0, I), so calibration needs no data set; labels come in
turn, guidance runs over its range.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmf_deploy.errors import require
from mmf_deploy.spec import SampleSpec

from .graph import fixed_inputs

FIRST_SEED = 1 << 40
"""Seeds from here on calibrate; those below judge."""


def images_for(spec: SampleSpec) -> int:
    """How many images calibrate: extremes need many, large images cost."""
    return 256 if spec.elements <= 1024 else 64


def calibrate(
    graph: Path,
    spec: SampleSpec,
    operators: list[str],
    on_progress: Callable[[int], None] = lambda images: None,
) -> Any:
    """Ranges by tensor name, as ONNX Runtime's quantiser takes them.

    Args:
        graph: the fp32 graph.
        operators: those whose inputs and outputs are needed.
        on_progress: called with the number of images just run.
    """
    ort = require("onnxruntime", "cpu")
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    batch = 32 if spec.elements <= 1024 else 4
    total = images_for(spec)

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seen = 0

        def get_next(self) -> dict[str, Any] | None:
            if self.seen:
                on_progress(batch)
            if self.seen >= total:
                return None
            inputs = fixed_inputs(spec, batch, FIRST_SEED + self.seen).named()
            self.seen += batch
            return inputs

    with tempfile.TemporaryDirectory() as scratch:
        calibrator = create_calibrator(
            graph,
            operators,
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
            # a graph of a large network stays below the limit of one file
            use_external_data_format=False,
        )
        # one thread, so that the ranges do not depend on the number of cores
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        calibrator.infer_session = ort.InferenceSession(
            str(calibrator.augmented_model_path), settings, providers=["CPUExecutionProvider"]
        )
        calibrator.collect_data(Noise())
        return calibrator.compute_data()
