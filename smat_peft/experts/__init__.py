"""The mathematics of sparse interpolated experts: tensors in, tensors out."""
