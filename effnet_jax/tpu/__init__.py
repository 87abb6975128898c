"""What a recipe would need and do on a slice of Cloud TPU, by the TPU's own compiler and without a TPU."""

AUTO = -1  # a batch size: the largest that fits
