"""The parameters and attributes that both estimators have, each documented once."""

from __future__ import annotations

from numbers import Integral, Real
from os import PathLike
from typing import Any

from torch import nn

from flatmin._utils.docstrings import with_entries
from flatmin._utils.validation import HasMethods, Interval, StrOptions
from flatmin.noise import NoiseLaw

__all__ = ["CONSTRAINTS", "with_shared_entries"]


CONSTRAINTS: dict[str, list[Any]] = {
    "module": [None, callable, nn.Module],
    "module_params": [None, dict],
    "output_transform": [None, callable],
    "target": [None, str],
    "positions": [StrOptions({"all", "example"})],
    "l2": [Interval(Real, 0, None, closed="left")],
    "method": [str, NoiseLaw, type],
    "method_params": [None, dict],
    "lr": [Interval(Real, 0, None, closed="neither")],
    "max_iter": [Interval(Integral, 0, None, closed="left")],
    "batch_size": [None, Interval(Integral, 1, None, closed="left")],
    "noise_scale": [None, Interval(Real, 0, None, closed="left")],
    "n_components": [
        None,
        Interval(Integral, 1, None, closed="left"),
        StrOptions({"full"}),
    ],
    "refresh_every": [None, Interval(Integral, 1, None, closed="left")],
    "gradient_batch_size": [None, Interval(Integral, 1, None, closed="left")],
    "optimizer_params": [None, dict],
    "training": [None, dict],
    "warmup": [None, dict],
    "memory": [None, str, HasMethods(["cache"])],
    "params_init": [None, "array-like"],
    "metrics": [None, dict],
    "record_every": [Interval(Integral, 1, None, closed="left")],
    "keep_params_every": [None, Interval(Integral, 1, None, closed="left")],
    "batch_norm": [StrOptions({"error", "frozen", "batch"})],
    "distributed": ["boolean"],
    "callbacks": [None, list],
    "on_divergence": [StrOptions({"raise", "stop"})],
    "checkpoint_dir": [None, str, PathLike, dict],
    "store_data": ["boolean"],
    "random_state": ["random_state"],
    "warm_start": ["boolean"],
    "verbose": ["verbose"],
}

_PARAMETERS = """
module : None, torch.nn.Module class, factory or instance, default=None
    None is :class:`flatmin.modules.MLP`. A class or factory is called with
    ``module_params``; an instance is deep-copied, and so fine-tuned.
module_params : dict, default=None
    Keyword arguments of the class or factory; ``module__x`` in ``set_params`` and
    in grids goes here.
output_transform : callable, default=None
    Takes what ``forward`` returns, and returns the tensor that is compared with y, of
    shape (n, ...). None takes a tensor as it is; of anything else ``logits``, else the
    first entry of a tuple, or the first tensor of a mapping.
target : str, default=None
    The name of the targets, where X, or an example of a data set, is a mapping that
    holds them: then y is None.
positions : {"all", "example"}, default="all"
    What an example with several targets counts: L is the mean over all targets, or over
    examples of each one's mean; see :class:`flatmin.EmpiricalRisk`.
l2 : float, default=0.0
    λ of a penalty (λ/2)‖θ‖², which is a part of L, of g₀ and of H: so it is in
    ``loss``, ``valid_loss`` and ``risk_``. It is not in Σ, the noise of minibatches,
    nor in what ``net_.get_loss`` returns; a law that takes its shape from H or G, such
    as "gld_hessian" or "gld_ggn", has λI in that shape. A ``weight_decay`` of the
    optimizer is a part of the step alone.
method : str, NoiseLaw or subclass of NoiseLaw, default="sgd"
    A name from :data:`flatmin.noise.METHODS`, which
    :func:`flatmin.noise.register_law` adds to, an instance, or a class.
method_params : dict, default=None
    Settings of a law given by name or as a class, which it must have; ``method__x``
    goes here, or into the instance.
max_iter : int, default=2000
    Iterations after the warm-up; not epochs.
batch_size : int, default=None
    m, the minibatch size whose noise is drawn or imitated. This and the next three
    are for the laws that have such a setting, and the others leave them aside. They
    override that of an instance; with a name, another value in ``method_params``
    is an error. None is the law's own: m = min(20, N), and min(20, ⌊N/2⌋) for
    "gld_leading".
noise_scale : float, default=None
    Multiplies ε; None is 1.
n_components : int or "full", default=None
    k, for laws of low rank; None is min(20, D), and less than the number of
    minibatches for "gld_leading". "full" is for "gld_hessian" alone.
refresh_every : int, default=None
    Iterations between two evaluations of what a law measures, counted from the end
    of the warm-up, or from where a warm start begins; None is 10 for laws that use
    H or G and for "label_noise", else 1.
gradient_batch_size : int, default=None
    B, for many examples: each iteration, of the warm-up too, sees a fresh batch of
    B examples as if there were no others, and the law adds to the batch's gradient
    the noise that minibatches of m have inside the batch, such as Σ_B/m. Batches
    are drawn without replacement, by a generator of their own. The whole noise is
    then that of the batch, of covariance (N - B)/(N - 1) Σ/B, plus the law's.
    What a law measures every ``refresh_every`` iterations it measures on the batch
    at hand, and N is B in the defaults above. None, or B ≥ N, is all examples.
optimizer : {"sgd", "rmsprop", "adam", "adamw"} or optimizer class, default="sgd"
    Takes the noisy gradient. "sgd" is the plain step θ ← θ - η (g₀ + ε).
optimizer_params : dict, default=None
    Its further arguments, such as momentum; ``optimizer__x`` goes here.
training : dict, default=None
    What else is done in the noisy iterations; ``training__x`` in ``set_params`` and in
    grids goes here. None, also of one setting, is nothing.
    ``clip_norm``, c: a noisy gradient g = g₀ + ε is scaled by min(1, c/(‖g‖ + 1e-6)),
    as ``torch.nn.utils.clip_grad_norm_`` does. A column n_clipped of ``history_``
    counts the steps that were clipped so far; noise_norm and every covariance C are
    those of the law, before clipping.
    ``schedule``: η of each iteration. "cosine" and "linear" fall from ``lr`` to 0 over
    ``max_iter``; or a class of ``torch.optim.lr_scheduler``, or a function of the
    optimizer that returns a scheduler, with ``schedule_params`` as keyword arguments.
    It is stepped after each iteration, and begins anew with each fit. A column lr of
    ``history_`` has η of the step after the row.
    ``early_stopping``: True ends the training when the score of held-out examples has
    not risen by ``tol`` (1e-4) in more than ``n_iter_no_change`` (10) blocks of
    ``record_every`` iterations, one after another, as scikit-learn's ``MLPClassifier``
    does. ``params_`` is then the θ of the best block. Held out are X_val and y_val, or
    else a part ``validation_fraction`` (0.1) of the examples, for a classifier with its
    share of each class; they are not trained on. Their score counts all alike.
    Without ``early_stopping``, ``n_iter_no_change`` or ``tol`` ends the training when
    the training loss has not fallen so.
warmup : dict, default=None
    What comes before the noise: iterations that bring θ near a minimum. Its
    settings are ``max_iter``, how many, and, if they are others than these,
    ``method="gd"`` (as above), ``optimizer="sgd"`` (a name or a class)
    and ``lr``, its η, which is else the estimator's. ``warmup__x`` in
    ``set_params`` and in grids goes here. None is no warm-up.
memory : None, str or joblib.Memory, default=None
    Caches the warm-up, so that a grid over ``method`` runs it once a fold; after an
    edit of the code that it runs it is another one. It needs a ``random_state``:
    with None every warm-up is another one. Not used where training or validation
    data are a data set, which is not read as a whole.
params_init : array-like of shape (n_params,), default=None
    θ to start from, flat, in ``named_parameters()`` order.
metrics : dict of str to callable, default=None
    ``metric(risk, theta)`` returns a number; recorded in ``history_`` after the
    warm-up. Where one raises a ValueError after the first row, because it is not
    defined there, it is NaN in that row, and a warning tells why.
record_every : int, default=100
    Iterations per block. After each one ``history_`` gets a row, which costs a few
    passes over the data, and callbacks are called: a skorch epoch is a block.
keep_params_every : int, default=None
    k: keep θ before the first noisy iteration, and after every k of them, in
    ``trajectory_``. That takes D numbers a point in memory, and in every checkpoint;
    a run whose points do not fit into the free memory is refused before it begins. A
    warm start goes on counting where the last fit ended. None keeps nothing.
batch_norm : {"error", "frozen", "batch"}, default="error"
    BatchNorm has no per-example gradients in train mode: refuse it, train with
    its running statistics as they are ("frozen"), or with those of the whole
    training set at each θ ("batch"). "batch" is for methods that need no
    per-example gradient: "gd", "gld_const", "sam", "gradient_penalty" with
    ``norm="full"``, and with ``match="none"`` "gld_hessian" and its kind, "gld_ggn",
    "anti_pgd" and "alpha_stable". All examples are one chunk in memory. Running
    statistics are then those of the training set at the θ of the moment, with
    divisor n: predictions and ``valid_loss`` use them.
device : str or torch.device, default="cpu"
    "auto" is CUDA where there is any.
dtype : {"float32", "float64"}, default="float32"
    Of θ and X.
distributed : bool, default=False
    Whether the processes of the default group of ``torch.distributed`` share the
    examples of each iteration, see :class:`flatmin.EmpiricalRisk`. All of them call
    ``fit`` with the same X and y, or each with a ``torch.utils.data.Subset`` of its
    own; classes, their weights and scores are of all. They end with the same θ bit for
    bit; the seeds are those of the first, which alone shows progress and writes
    checkpoints, in a folder that all can read. Callbacks and metrics run on each.
    ``risk_`` is shared: all ask it alike. Predictions are each process's own. Refused
    with ``memory`` and ``batch_norm="batch"``.
callbacks : list of skorch callbacks, default=None
    Those that work on epochs; batch-level ones are refused. What they write into
    the module is followed: the θ that they leave when training begins is the
    first row of ``history_``, and one that they set later is measured anew; but what
    they set in the last ``on_epoch_end``, or after it, is in ``params_`` and in no row.
on_divergence : {"raise", "stop"}, default="raise"
    When the loss stops being finite: raise :class:`flatmin.DivergenceError`, or
    keep the last θ with a finite loss and warn.
checkpoint_dir : path-like or dict, default=None
    A folder for this run alone, in which it is saved on its way: ``fit``, called
    again with the same arguments, also in a later process, goes on from there, and
    ends at the same θ bit for bit (on a GPU as far as its sums are repeatable); a
    run that has ended is read back. Needs an integer ``random_state``. A
    folder that holds a run with other settings, data or code is refused, and so is
    one in which another run is at work, or that cannot be locked; a data set is
    known by checksums of all its examples. Files are whole or not there, hold no
    code, and the last two are kept. What a run does not own is not in them:
    random numbers of NumPy's and PyTorch's global generators, what metrics and
    modules remember, and of callbacks whatever they do not keep in attributes of
    numbers, strings, tensors and arrays, or return from ``state_dict``.
    A checkpoint is written after every block of ``record_every`` iterations.
    ``{"path": folder, "every": n}`` writes one at the multiples of n iterations
    instead, counted in the warm-up and after it.
store_data : bool, default=True
    Keep the risk of the training data in ``risk_``, until pickled.
random_state : int, RandomState instance or None, default=None
    Seeds initialisation, batches and noise through generators of their own.
warm_start : bool, default=False
    Go on from where the last fit ended: θ, generator, history and iterations, with
    a new optimizer and without a warm-up. Another ``module``, ``module_params`` or
    ``params_init`` than that fit's is refused; ``params_init=None`` is not.
verbose : bool or int, default=False
    Show progress bars.
"""

_ATTRIBUTES = """
params_ : ndarray of shape (n_params,)
    θ of ``module_``, a copy: at the end of the training, and after
    ``net_.load_params`` what has been loaded.
module_ : torch.nn.Module
    The trained network, in eval mode.
net_ : skorch.NeuralNet
    The net that trained it, with the same labels and the same loss.
noise_ : NoiseLaw
    The law with the settings that were used.
history_ : pandas.DataFrame
    A row at the start and after every block: iteration (the warm-up's counted),
    phase, loss L(θ), train_score, valid_loss, valid_score, gradient_norm ‖g₀‖,
    noise_norm √E‖ε‖² in the same units, and the metrics. All are of the whole
    data, but with ``gradient_batch_size`` the law's noise is that in a batch, and that
    of ``svag`` is of one of its l steps. Weights count in the losses alone, not in the
    scores; in valid_loss those of the classes, as in ``make_risk(X_val, y_val)``.
trajectory_ : Trajectory or None
    The points that ``keep_params_every`` has kept: ``iterations``, counted as in
    ``history_``, and ``params`` of shape (n_points, n_params). It stands for that array
    wherever one is wanted, and ``trajectory_.measure(clf.risk_, metrics)`` measures
    every point.
best_iteration_ : int or None
    With ``early_stopping``, the iteration, counted as in ``history_``, whose θ
    ``params_`` is.
n_iter_ : int
    Iterations done after the warm-up.
n_steps_ : int
    Steps of the optimizer in them: l an iteration for ``svag``, else one.
    ``history_`` has them as n_steps in the rows of a fit with ``svag``.
diverged_ : str or None
    What happened, where ``on_divergence="stop"`` ended the training.
risk_ : EmpiricalRisk or None
    On the training data, with ``store_data``; its ``params()`` is ``params_``, and
    another risk is made where ``module_`` has changed. None after unpickling.
n_features_in_ : int
    Size of axis 1 of X; not there where X is a mapping or a tuple.
feature_names_in_ : ndarray of shape (`n_features_in_`,)
    Column names, if X had them.
"""


with_shared_entries = with_entries(parameters=_PARAMETERS, attributes=_ATTRIBUTES)
