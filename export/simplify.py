"""What the exporter leaves that a static graph does not need."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def simplify(model: onnx.ModelProto) -> None:
    """Make reshapes static, in place.

    The second reshape of a normalisation asks for the shape of its input at run time, though
    all of it but the batch is known: Reshape(x, Shape(y)) becomes Reshape(x, [0, C, H, W]),
    where 0 keeps the batch. The Shape operators then have no reader and go.
    """
    graph = model.graph
    shapes = _known_shapes(model)
    asked = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Shape" and _whole(n)}
    made: dict[tuple[int, ...], str] = {}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in asked:
            continue
        like, data = shapes.get(asked[node.input[1]]), shapes.get(node.input[0])
        if like is None or data is None or not _same_batch(like, data):
            continue
        wanted = (0, *(int(d) for d in like[1:]))
        if wanted not in made:
            made[wanted] = "shape_" + "_".join(map(str, wanted[1:]))
            graph.initializer.append(
                numpy_helper.from_array(np.array(wanted, np.int64), made[wanted])
            )
        node.input[1] = made[wanted]
        # the 0 above keeps the batch, and is no size
        for attribute in [a for a in node.attribute if a.name == "allowzero"]:
            node.attribute.remove(attribute)
    drop_dead(model)


def drop_dead(model: onnx.ModelProto) -> None:
    """Remove nodes and initialisers that nothing reads."""
    graph = model.graph
    while True:
        read = {name for node in graph.node for name in node.input}
        read |= {value.name for value in graph.output}
        dead = [n for n in graph.node if not any(name in read for name in n.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for initializer in [i for i in graph.initializer if i.name not in read]:
        graph.initializer.remove(initializer)
    produced = {name for node in graph.node for name in node.output}
    for info in [v for v in graph.value_info if v.name not in produced]:
        graph.value_info.remove(info)


def _whole(node: onnx.NodeProto) -> bool:
    """Shape of every dimension: start 0 and no end."""
    given = {a.name: a.i for a in node.attribute}
    return given.get("start", 0) == 0 and "end" not in given


Dims = tuple[int | str, ...]


def _known_shapes(model: onnx.ModelProto) -> dict[str, Dims]:
    """Shapes by tensor name, where every dimension has a number or a name."""
    inferred = onnx.shape_inference.infer_shapes(model)
    found: dict[str, Dims] = {}
    graph = inferred.graph
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            continue
        dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param
                     for d in kind.shape.dim)  # fmt: skip
        if "" not in dims:
            found[value.name] = dims
    return found


def _same_batch(a: Dims, b: Dims) -> bool:
    """Both begin with the same symbolic batch, and the rest of ``a`` is numbers."""
    return (
        bool(a and b)
        and a[0] == b[0]
        and isinstance(a[0], str)
        and all(isinstance(d, int) for d in a[1:])
    )
