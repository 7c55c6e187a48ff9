"""Many θ of one network at once: ``vmap`` over chains, and when it is taken."""
