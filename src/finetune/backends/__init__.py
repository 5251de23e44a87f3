"""A finished model in other runtimes: its conversion, INT8, what each one costs, and the choice among them.

OpenVINO, NNCF and ONNX Runtime are imported here alone, and only where they are asked for.
"""
