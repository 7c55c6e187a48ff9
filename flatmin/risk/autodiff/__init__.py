"""What PyTorch's automatic differentiation needs to be right twice, and undisturbed."""
