"""The engines by name. Each is imported only when it is opened."""

ENGINES = {
    "onnxruntime": "mmf_deploy.engines.ort:OnnxRuntimeEngine",
    "openvino": "mmf_deploy.engines.ov:OpenVinoEngine",
    "tensorrt": "mmf_deploy.engines.trt:TensorRTEngine",
    "aoti": "mmf_deploy.engines.aoti:AotiEngine",
    "pytorch": "mmf_deploy.engines.torch_engine:PyTorchEngine",
}
