"""What multiplies by H, G and J at one θ: the ways, and the choice among them."""
