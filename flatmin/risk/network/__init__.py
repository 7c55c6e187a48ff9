"""A module as a function of one flat θ: its copy, its parameters, its mode."""
