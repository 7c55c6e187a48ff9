"""Per-example gradients, and sums over them."""
