"""What takes most time of a training step on a CPU besides the linear layers: dropout and attention, made faster.

They compute what PyTorch computes, with the same distribution of what is dropped; models/adapt/cpu_kernels.py puts them
into a model.
"""
