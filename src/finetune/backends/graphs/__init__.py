"""A model as graphs of OpenVINO and ONNX, in 32 bits and in INT8."""
