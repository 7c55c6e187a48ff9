"""What the classifier and the regressor share: parameters, fit and outputs."""

from __future__ import annotations

import copy
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, check_memory, validate_data
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import Tensor, nn

from flatmin._utils.progress import progress_bar
from flatmin._utils.random import make_generator, spawn_seeds
from flatmin._utils.validation import HasMethods, Interval, StrOptions
from flatmin.dynamics import (
    FlatBinding,
    NoisyDescent,
    Recorder,
    StopTraining,
    check_callbacks,
    resolve_optimizer,
    run_warmup,
)
from flatmin.estimators._laws import resolve_law
from flatmin.estimators._module import (
    build_module,
    module_key,
    resolve_device,
    resolve_dtype,
)
from flatmin.estimators._routing import RoutedParamsMixin
from flatmin.noise import NoiseLaw
from flatmin.risk import EmpiricalRisk
from flatmin.risk.checks import as_input

__all__ = ["BaseNoisyDiffusion"]


@dataclass
class _Run:
    """What one call of fit works with."""

    module: nn.Module
    risk: EmpiricalRisk
    recorder: Recorder
    law: NoiseLaw
    seeds: dict[str, int]
    generator: torch.Generator
    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    validation: tuple[np.ndarray, np.ndarray] | None
    continues: bool  # where an earlier fit ended
    n_iter_before: int  # noisy iterations of earlier fits
    offset: int  # iterations of earlier fits and of the warm-up
    rows: list[dict[str, Any]]


class BaseNoisyDiffusion(RoutedParamsMixin):
    """Trains a module by θ ← θ - η (g₀ + ε); see the two subclasses."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "module": [None, callable, nn.Module],
        "module_params": [None, dict],
        "method": [str, NoiseLaw],
        "method_params": [None, dict],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [None, Interval(Integral, 1, None, closed="left")],
        "noise_scale": [None, Interval(Real, 0, None, closed="left")],
        "n_components": [None, Interval(Integral, 1, None, closed="left")],
        "refresh_every": [None, Interval(Integral, 1, None, closed="left")],
        "optimizer_params": [None, dict],
        "warmup_method": [str, NoiseLaw],
        "warmup_iter": [Interval(Integral, 0, None, closed="left")],
        "warmup_lr": [None, Interval(Real, 0, None, closed="neither")],
        "memory": [None, str, HasMethods(["cache"])],
        "params_init": [None, "array-like"],
        "metrics": [None, dict],
        "record_every": [Interval(Integral, 1, None, closed="left")],
        "batch_norm": [StrOptions({"error", "frozen"})],
        "callbacks": [None, list],
        "callbacks_params": [None, dict],
        "on_divergence": [StrOptions({"raise", "stop"})],
        "store_data": ["boolean"],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
    }
    _net_class: ClassVar[type]

    # ------------------------------------------------------------------ subclass
    @abstractmethod
    def _encode(self, y: Any, *, reset: bool) -> np.ndarray:
        """Check y, learn from it if ``reset``, and give it the risk's form."""

    @abstractmethod
    def _n_outputs(self, y: np.ndarray) -> int:
        """Return how many outputs the default MLP needs."""

    @abstractmethod
    def _resolve_loss(self, outputs: Tensor) -> Any:
        """Return the loss; ``outputs`` are those of one example."""

    @abstractmethod
    def _scorer(self, y: np.ndarray) -> Callable[[Tensor], float]:
        """Return the function that scores the network's outputs against y."""

    def _combine_weights(self, sample_weight: Any, y: np.ndarray) -> np.ndarray | None:
        """Return the weights of the examples."""
        del y
        if sample_weight is None:
            return None
        return np.asarray(sample_weight, dtype=np.float64)

    # ----------------------------------------------------------------------- fit
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
    ) -> BaseNoisyDiffusion:
        """Train.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)
            Rows, images or sequences: whatever the module takes.
        y : array-like of shape (n_samples,)
            Targets; for a regressor also of shape (n_samples, n_targets).
        sample_weight : array-like of shape (n_samples,), default=None
            wᵢ ≥ 0; only their ratios matter.
        X_val : array-like, default=None
            Validation data: ``history_`` and the callbacks then have ``valid_loss``
            and ``valid_score``. They are not trained on.
        y_val : array-like, default=None
            Their targets.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Before training, if parameters and data do not fit together.
        DivergenceError
            If the loss stops being finite and ``on_divergence="raise"``.

        Warns
        -----
        ConvergenceWarning
            If it stops being finite and ``on_divergence="stop"``.
        """
        self._validate_params()
        run = self._prepare(X, y, sample_weight, X_val, y_val)
        theta = self._start(run)
        theta = self._warm_up(run, theta)
        self._train(run, theta)
        return self

    def _prepare(
        self, X: Any, y: Any, sample_weight: Any, X_val: Any, y_val: Any
    ) -> _Run:
        """Check everything that can be checked before work is done."""
        device, dtype = resolve_device(self.device), resolve_dtype(self.dtype)
        check_callbacks(self.callbacks)
        resolve_optimizer(self.optimizer, self.optimizer_params or {})
        resolve_optimizer(self.warmup_optimizer, {})
        law = resolve_law(
            self.method,
            self.method_params,
            {
                "batch_size": self.batch_size,
                "noise_scale": self.noise_scale,
                "n_components": self.n_components,
                "refresh_every": self.refresh_every,
            },
        )
        warm = bool(self.warm_start) and hasattr(self, "params_")
        X = self._check_inputs(X, reset=not warm)
        targets = self._encode(y, reset=not warm)
        if len(X) != len(targets):
            raise ValueError(
                f"X and y must have as many examples. Got {len(X)} and {len(targets)}."
            )
        weights = self._combine_weights(sample_weight, targets)
        validation = self._check_validation(X_val, y_val)

        names = ("init", "warmup", "noise")
        seeds = spawn_seeds(self.random_state, names)
        if warm:
            module = copy.deepcopy(self.module_).to(device=device, dtype=dtype)
        else:
            module = build_module(
                self.module,
                self.module_params,
                n_features=math.prod(X.shape[1:]),
                n_outputs=self._n_outputs(targets),
                seed=seeds["init"],
                dtype=dtype,
                device=device,
            )
        options = {
            "output_transform": first_output,
            "batch_norm": self.batch_norm,
            "device": device,
            "dtype": dtype,
        }
        loss = self._probe_loss(module, X, dtype, device)
        risk = EmpiricalRisk(module, loss, X, targets, sample_weight=weights, **options)
        recorder = Recorder(risk, self._scorer(targets), metrics=self.metrics)
        if validation is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # said by the risk above
                recorder.validation_risk = EmpiricalRisk(
                    module, loss, *validation, **options
                )
            recorder.validation_score = self._scorer(validation[1])
        law.check(risk)

        generator = make_generator(seeds["noise"], device)
        if warm:
            generator.set_state(self._generator_state)
        return _Run(
            module=module,
            risk=risk,
            recorder=recorder,
            law=law,
            seeds=seeds,
            generator=generator,
            X=X,
            y=targets,
            weights=weights,
            validation=validation,
            continues=warm,
            n_iter_before=self.n_iter_ if warm else 0,
            offset=int(self.history_["iteration"].iloc[-1]) if warm else 0,
            rows=self.history_.to_dict("records")[:-1] if warm else [],
        )

    def _start(self, run: _Run) -> Tensor:
        """Return θ₀: ``params_init``, where an earlier fit ended, or the module's."""
        if self.params_init is None or run.continues:
            return run.risk.params()
        theta = np.asarray(self.params_init, dtype=np.float64)
        if theta.shape != (run.risk.n_params,):
            raise ValueError(
                f"params_init must be one flat vector of the module's "
                f"{run.risk.n_params} trainable parameters. Got shape {theta.shape}."
            )
        if not np.isfinite(theta).all():
            raise ValueError("params_init contains NaN or infinity.")
        return torch.as_tensor(theta, dtype=run.risk.dtype, device=run.risk.device)

    def _warm_up(self, run: _Run, theta: Tensor) -> Tensor:
        """Return θ after ``warmup_iter`` iterations of the warm-up's own law."""
        if not self.warmup_iter or run.continues:
            return theta
        law = resolve_law(self.warmup_method, None, {"batch_size": self.batch_size})
        law.check(run.risk)
        lr = self.lr if self.warmup_lr is None else self.warmup_lr
        kind = resolve_optimizer(self.warmup_optimizer, {})
        recorder = copy.copy(run.recorder)
        recorder.metrics = {}

        def build() -> tuple[NoisyDescent, Recorder]:
            binding = FlatBinding(copy.deepcopy(run.module))
            binding.assign(theta)
            descent = NoisyDescent(
                run.risk,
                law,
                binding,
                kind(binding.params, lr=lr),
                make_generator(run.seeds["warmup"], run.risk.device),
            )
            return descent, recorder

        key = None
        if self.memory is not None and self.random_state is not None:
            key = {
                "theta": theta.cpu().numpy(),
                "module": module_key(run.module),
                "data": [run.X, run.y, run.weights, run.validation],
                "loss": repr(self.loss),
                "law": repr(law),
                "optimizer": kind.__qualname__,
                "lr": float(lr),
                "seed": run.seeds["warmup"],
                "arithmetic": f"{run.risk.dtype} {run.risk.device} {torch.__version__}",
                "threads": torch.get_num_threads(),
                "batch_norm": self.batch_norm,
            }
        result = run_warmup(
            build,
            key,
            n_iter=self.warmup_iter,
            record_every=self.record_every,
            memory=check_memory(self.memory),
            verbose=self.verbose,
        )
        run.offset = self.warmup_iter
        run.rows = list(result.rows)
        return torch.as_tensor(result.theta, device=run.risk.device)

    def _train(self, run: _Run, theta: Tensor) -> None:
        """Run the noisy iterations inside a skorch net and store what they give."""
        net = self._make_net(run)
        net.initialize()
        binding = FlatBinding(net.module_)
        binding.assign(theta)
        descent = NoisyDescent(
            run.risk,
            run.law,
            binding,
            net.optimizer_,
            run.generator,
            on_divergence=self.on_divergence,
        )
        title = self.method if isinstance(self.method, str) else type(run.law).__name__
        bar = progress_bar(self.max_iter, title, verbose=self.verbose)
        net.attach(
            descent,
            run.recorder,
            max_iter=self.max_iter,
            record_every=self.record_every,
            offset=run.offset,
            progress=bar.update,
        )
        X = run.X
        if X.dtype.kind == "f":
            X = X.astype(str(run.risk.dtype).removeprefix("torch."), copy=False)
        try:
            with bar, torch.random.fork_rng(devices=[]):
                descent.refresh()
                descent.check(net.record_()["loss"])
                net.notify("on_train_begin", X=X, y=run.y)
                net.fit_loop(X, run.y)
                net.notify("on_train_end", X=X, y=run.y)
        except StopTraining:
            net.notify("on_train_end", X=X, y=run.y)
        except KeyboardInterrupt:
            self._store(run, net, binding)
            raise
        self._store(run, net, binding)
        if descent.diverged is not None:
            warnings.warn(
                f"{descent.diverged} Stopped at the last parameters with a finite loss "
                "(on_divergence='stop').",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _make_net(self, run: _Run) -> Any:
        blocks = math.ceil(self.max_iter / self.record_every)
        split = None
        if run.validation is not None:
            split = predefined_split(Dataset(*run.validation))
        params = {
            **{f"optimizer__{k}": v for k, v in (self.optimizer_params or {}).items()},
            **{f"callbacks__{k}": v for k, v in (self.callbacks_params or {}).items()},
        }
        defaults = dict.fromkeys(("callbacks__valid_acc", "callbacks__print_log"))
        if self._net_class.__name__ == "NoisyNetRegressor":
            del defaults["callbacks__valid_acc"]
        return self._net_class(
            run.module,
            criterion=nn.CrossEntropyLoss,
            optimizer=resolve_optimizer(self.optimizer, self.optimizer_params or {}),
            lr=self.lr,
            max_epochs=blocks,
            batch_size=-1,
            train_split=split,
            callbacks=self.callbacks,
            use_caching=False,
            device=str(run.risk.device),
            verbose=0,
            **{**defaults, **params},
        )

    def _store(self, run: _Run, net: Any, binding: FlatBinding) -> None:
        descent = net.descent_
        self.params_ = binding.theta.cpu().numpy().copy()
        binding.release()
        self.net_ = net
        self.module_ = net.module_.eval()
        self.noise_ = run.law
        self.history_ = pd.DataFrame(run.rows + net.rows_)
        self.n_iter_ = run.n_iter_before + descent.iteration
        self._generator_state = run.generator.get_state()
        self._chunk_size = run.risk.chunk_size
        self.risk_ = run.risk if self.store_data else None

    # ------------------------------------------------------------------- checks
    def _check_inputs(self, X: Any, *, reset: bool) -> np.ndarray:
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy()
        X = validate_data(
            self,
            X,
            reset=reset,
            allow_nd=True,
            ensure_min_samples=2 if reset else 1,
            dtype="numeric",
        )
        if reset:
            self._input_shape = X.shape[1:]
        elif X.shape[1:] != self._input_shape:
            raise ValueError(
                f"X must have the shape of the training data, "
                f"{('n', *self._input_shape)}. Got {('n', *X.shape[1:])}."
            )
        return X

    def _check_validation(
        self, X_val: Any, y_val: Any
    ) -> tuple[np.ndarray, np.ndarray] | None:
        if (X_val is None) != (y_val is None):
            missing = "X_val" if X_val is None else "y_val"
            raise ValueError(f"X_val and y_val come together. Got {missing}=None.")
        if X_val is None:
            return None
        return self._check_inputs(X_val, reset=False), self._encode(y_val, reset=False)

    def _probe_loss(
        self, module: nn.Module, X: np.ndarray, dtype: torch.dtype, device: torch.device
    ) -> Any:
        if self.loss != "auto":
            return self.loss
        first = as_input(torch.as_tensor(X[:1].copy(), device=device), module, dtype)
        with torch.no_grad():
            return self._resolve_loss(first_output(copy.deepcopy(module).eval()(first)))

    # ------------------------------------------------------------------ outputs
    def _outputs(self, X: Any) -> np.ndarray:
        """Return the network's outputs, around the data loader and its seeds."""
        check_is_fitted(self)
        X = self._check_inputs(X, reset=False)
        first = next(self.module_.parameters())
        parts = []
        with torch.no_grad():
            for start in range(0, len(X), self._chunk_size):
                part = torch.as_tensor(
                    X[start : start + self._chunk_size].copy(), device=first.device
                )
                part = as_input(part, self.module_, first.dtype)
                parts.append(first_output(self.module_(part)).cpu().numpy())
        return np.concatenate(parts)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        # The data stay behind, and the network travels once, inside of net_.
        for name in ("risk_", "module_"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "net_"):
            self.module_ = self.net_.module_
            self.risk_ = None


def first_output(outputs: Any) -> Tensor:
    """Take the first of several outputs, as skorch does for predictions.

    Parameters
    ----------
    outputs : Tensor or tuple

    Returns
    -------
    Tensor
    """
    return outputs[0] if isinstance(outputs, tuple) else outputs
