"""Several processes that share the examples: who they are, and what each holds."""
