"""ONNX Runtime's ORTModule: the forward and backward pass of training as a graph of ONNX Runtime."""
