"""Parts of a training step, made faster: dropout and attention on a CPU, batches without padding, recorded passes.

They compute what PyTorch computes, with the same distribution of what is dropped; models/adapt/cpu_kernels.py and
padding_free.py put them into a model.
"""
