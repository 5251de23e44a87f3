"""A model as graphs of OpenVINO and ONNX: which models, from which module, in how many bits."""
