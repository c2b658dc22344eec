"""Released PyTorch checkpoints to this project's weights, read without torch."""
