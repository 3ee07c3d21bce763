"""Training: data, checkpoints, the pre-training loop and its metrics."""
