"""The engines by name. Each is imported only when it is opened."""

ENGINES = {
    "onnxruntime": "mmf_deploy.engines.ort:OnnxRuntimeEngine",
    "pytorch": "mmf_deploy.engines.torch_engine:PyTorchEngine",
}
