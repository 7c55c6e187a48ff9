"""What each parameter of the estimators decides: one table for all who ask."""

from __future__ import annotations

__all__ = ["PARAMETERS", "parameters_for"]

_BY_ROLE = {
    # Where a run begins, and on which loss.
    "start": (
        *("module", "module_params", "loss", "output_transform", "target"),
        *(
            "positions",
            "l2",
            "class_weight",
            "dtype",
            "batch_norm",
            "params_init",
            "warmup",
        ),
    ),
    # How it goes on from there, and how often that is recorded.
    "run": (
        *("method", "method_params", "lr", "max_iter", "batch_size", "noise_scale"),
        *("n_components", "refresh_every", "gradient_batch_size", "optimizer"),
        *("optimizer_params", "training", "callbacks", "record_every"),
    ),
    "measurement": ("metrics", "keep_params_every"),
    # Sums on another device differ in their last bits.
    "device": ("device", "distributed"),
    # Which of many runs it is, and what becomes of one that diverges.
    "fit": ("random_state", "on_divergence"),
    "folder": ("checkpoint_dir",),
    # No number depends on these.
    "bookkeeping": ("memory", "store_data", "verbose", "warm_start"),
}

# Name -> what it decides.
PARAMETERS = {name: role for role, names in _BY_ROLE.items() for name in names}


def parameters_for(*roles: str) -> set[str]:
    """Return the names of the parameters that decide something.

    Parameters
    ----------
    *roles : {"start", "run", "measurement", "device", "fit", "folder", "bookkeeping"}

    Returns
    -------
    set of str

    Examples
    --------
    >>> sorted(parameters_for("measurement", "fit"))
    ['keep_params_every', 'metrics', 'on_divergence', 'random_state']
    """
    return {name for role in roles for name in _BY_ROLE[role]}
