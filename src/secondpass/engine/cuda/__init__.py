"""What only a CUDA device needs."""
