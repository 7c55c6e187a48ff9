"""Every measure of flatmin at one θ, beside its value in float64 without flatmin."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _float64 import SEED, Known, Truth
from _problems import BATCH_SIZE, Problem
from scipy import stats
from scipy.linalg import subspace_angles
from torch import Tensor

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer, SharpnessScorer
from flatmin import measures as fm
from flatmin.curvature import HessianOperator
from flatmin.linalg import spectral_density

__all__ = ["Report", "Row", "Sizes"]

LR = 0.1  # η of the step sizes that norms and bounds are stated at
DEVIATION = 4.0  # standard errors up to which two drawn numbers agree
TOLERANCE = 1e-3  # relative error up to which two exact ones do, one in float32


@dataclass(frozen=True)
class Row:
    """One number, twice."""

    section: str
    measure: str
    flatmin: float
    stderr: float
    float64: float
    float64_stderr: float
    error: float
    unit: str  # "rel" or "se"
    limit: float

    @property
    def agrees(self) -> bool:
        return self.error <= self.limit  # not for NaN


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    part: int  # examples where an exact value takes a product for each
    small: int  # examples where it takes many products with each Hᵢ
    layer: str  # whose blocks of H and Σ are measured too
    n_draws: int  # perturbations of the expected sharpness, in float64
    quadrature: tuple[int, int]  # probes and steps of the density


class Report:
    """The rows of one problem, section by section."""

    def __init__(
        self,
        problem: Problem,
        theta: Tensor,
        sizes: Sizes,
        log: Callable[[str], None],
    ) -> None:
        self.rows: list[Row] = []
        self.k, self.sizes, self.log = problem.n_components, sizes, log
        self.problem = problem.at(theta)
        self.truth = Truth(problem, theta, self.k)
        self.part = self.truth
        if sizes.part < len(problem.X):
            self.part = self.truth.first(sizes.part)
        self.theta = theta
        # The three lines.
        self.curvature = self.analyzer(CurvatureAnalyzer, len(problem.X))
        self.noise = self.analyzer(NoiseCovarianceAnalyzer, len(problem.X))
        self.scorer = SharpnessScorer(self.problem.module, loss=problem.loss)
        self.risk = self.curvature.risk_
        self.part_risk = self.risk.subset(torch.arange(self.part.n_examples))

    def analyzer(self, kind: Any, n: int, **options: Any) -> Any:
        model, loss = self.problem.module, self.problem.loss
        analyzer = kind(
            model, loss=loss, n_components=self.k, random_state=0, **options
        )
        return analyzer.fit(self.problem.X[:n], self.problem.y[:n])

    def fill(self) -> list[Row]:
        for section in (
            self.curvature_rows,
            self.relatives_rows,
            self.noise_rows,
            self.alignment_rows,
            self.trace_product_rows,
            self.layer_rows,
            self.power_law_rows,
            self.gaussianity_rows,
            self.tail_rows,
            self.sharpness_rows,
            self.stability_rows,
        ):
            self.section = section.__name__.removesuffix("_rows").replace("_", " ")
            start = time.perf_counter()
            section()
            self.log(f"{section.__name__} took {time.perf_counter() - start:.1f} s")
        return self.rows

    # What a row is made of.

    def exact(
        self,
        measure: str,
        found: Any,
        wanted: Any,
        limit: float = TOLERANCE,
        scale: float | None = None,
    ) -> None:
        """Compare without chance; of vectors the norms are shown."""
        found, wanted = _array(found), _array(wanted)
        size = np.linalg.norm(wanted) if scale is None else scale
        difference = np.linalg.norm(found - wanted)
        error = difference / size if difference else 0.0
        self._add(measure, _shown(found), 0.0, _shown(wanted), 0.0, error, "rel", limit)

    def drawn(
        self,
        measure: str,
        found: Any,
        wanted: Known | float,
        stderr: float | None = None,
        scale: float | None = None,
    ) -> None:
        """Compare a number with a standard error of its own, if it has one."""
        wanted = wanted if isinstance(wanted, Known) else Known(float(wanted))
        if stderr is None:
            stderr = float(found.stderr)
        value, both = float(found), math.hypot(stderr, wanted.stderr)
        if both == 0:
            self.exact(measure, value, wanted.value, scale=scale)
            return
        error = abs(value - wanted.value) / both
        self._add(measure, value, stderr, *wanted, error, "se", DEVIATION)

    def _add(self, measure: str, *numbers: Any) -> None:
        *values, unit, limit = numbers
        row = Row(self.section, measure, *map(float, values), unit, float(limit))
        self.rows.append(row)

    # The sections.

    def curvature_rows(self) -> None:
        truth, analyzer, k = self.truth, self.curvature, self.k
        X, y = self.problem.X, self.problem.y
        self.exact("loss", self.risk.value(self.theta), truth.loss)
        self.exact("g₀", self.risk.gradient(self.theta), truth.gradient)
        pairs = analyzer.eigen()
        values, U = pairs.eigenvalues, pairs.eigenvectors.astype(float)
        self.exact(f"eigen({k}): λ", values, truth.eigenvalues[:k])
        for i in (0, k - 1):
            self.exact(f"  λ{i + 1}", values[i], truth.eigenvalues[i])
        residuals = [
            np.linalg.norm(truth.hvp(u) - value * u)
            for u, value in zip(U.T, values, strict=True)
        ]
        scale = truth.eigenvalues[0]
        self.exact("  residuals ‖Hu - λu‖", pairs.residuals, residuals, scale=scale)
        # A tolerance bounds the angle by itself over the gap, not by itself.
        away = 1 - _overlap(U, truth.eigenvectors)
        self.exact("  overlap with the right span", 1 - away, 1.0, 1e-2)
        if truth.hessian is not None:
            lowest = analyzer.eigen(1, which="SA").eigenvalues
            wanted = np.linalg.eigvalsh(truth.hessian)[0]
            # A tolerance is a share of the largest |λ|, whichever pair it is for.
            told = self.curvature.tol, scale
            self.exact("eigen(1, which='SA'): λ_D", lowest[0], wanted, *told)
        v = np.random.default_rng(SEED).standard_normal(truth.n_params)
        self.exact("matvec", analyzer.matvec(v), truth.hvp(v))
        self.exact("transform: gᵢᵀuⱼ", analyzer.transform(X, y), truth.gradients @ U)
        share = ((truth.noise @ truth.eigenvectors) ** 2).mean(
            0
        ).sum() / truth.variances.sum()
        self.exact("score: share of Tr(Σ) in the basis", analyzer.score(X, y), share)
        trace = truth.hessian_diagonal.sum()
        self.drawn("trace: Tr(H)", analyzer.trace(), trace)
        diagonal = analyzer.diagonal()
        self._vector("diagonal: diag(H)", diagonal, truth.hessian_diagonal)
        # Eight steps give both moments exactly; what is drawn is the probes.
        density = analyzer.density(n_probes=20, n_steps=8)
        D = truth.n_params
        moment, stderr = density.moment(1)
        self.drawn("density: D × first moment", D * moment, trace, D * stderr)
        moment, stderr = density.moment(2)
        norm = truth.hessian_norm
        square = Known(norm.value**2, 2 * norm.value * norm.stderr)
        self.drawn("density: D × second moment", D * moment, square, D * stderr)

    def _vector(self, measure: str, found: Any, wanted: np.ndarray) -> None:
        """Compare an estimated vector in units of the norm of its errors."""
        stated = float(np.linalg.norm(found.stderr))
        if stated == 0:
            self.exact(measure, found.value, wanted)
            return
        error = float(np.linalg.norm(found.value - wanted)) / stated
        values = _shown(_array(found.value)), stated, _shown(wanted), 0.0
        self._add(measure, *values, error, "se", 2.0)

    def relatives_rows(self) -> None:
        truth, n = self.part, self.part.n_examples
        self.section = f"G and Fisher matrices{self._of(n)}"
        trace = truth.sweep.ggn_diagonal.sum()
        # Fisher's matrix equals G for this loss.
        for matrix in ("ggn", "fisher"):
            analyzer = self.analyzer(CurvatureAnalyzer, n, matrix=matrix)
            values = analyzer.eigen().eigenvalues
            self.exact(
                f"{matrix}: eigenvalues", values, truth.ggn_eigenvalues[: self.k]
            )
            self.drawn(f"{matrix}: trace", analyzer.trace(), trace)
            self._vector(
                f"{matrix}: diagonal", analyzer.diagonal(), truth.sweep.ggn_diagonal
            )
        analyzer = self.analyzer(CurvatureAnalyzer, n, matrix="empirical_fisher")
        moments = np.linalg.eigvalsh(truth.gradients @ truth.gradients.T / n)[::-1]
        squares = (truth.gradients**2).mean(0)
        name = "empirical_fisher"
        self.exact(
            f"{name}: eigenvalues", analyzer.eigen().eigenvalues, moments[: self.k]
        )
        self.drawn(f"{name}: trace", analyzer.trace(), moments.sum())
        self.exact(f"{name}: diagonal", analyzer.diagonal().value, squares)
        mu = fm.loss_scaled_alignment(self.part_risk, self.theta, k=self.k)
        wanted = truth.ggn_trace_product / (2 * truth.loss * truth.ggn_norm**2)
        self.drawn("loss_scaled_alignment: μ", mu, wanted)
        self.drawn("  ‖G‖_F", mu.curvature_norm, truth.ggn_norm)
        bound = (BATCH_SIZE / wanted) ** 0.5 / LR
        stderr = bound / 2 * float(mu.stderr) / wanted
        self.drawn("  norm_bound", mu.norm_bound(LR, BATCH_SIZE), bound, stderr)

    def noise_rows(self) -> None:
        truth, analyzer, risk, theta = self.truth, self.noise, self.risk, self.theta
        X, y = self.problem.X, self.problem.y
        pairs = analyzer.eigen()
        gamma, V = truth.covariance_eigenvalues, pairs.eigenvectors.astype(float)
        trace, norm, k = truth.variances.sum(), truth.covariance_norm, self.k
        g = np.linalg.norm(truth.gradient)
        self.exact("trace: Tr(Σ)", float(analyzer.trace()), trace)
        self.exact("diagonal: diag(Σ)", analyzer.diagonal().value, truth.variances)
        self.exact(f"eigen({k}): eigenvalues", pairs.eigenvalues, gamma[:k])
        span = _overlap(V, truth.covariance_eigenvectors)
        self.exact("  overlap with the right span", span, 1.0, 1e-2)
        self.exact("transform: (gᵢ - g₀)ᵀvⱼ", analyzer.transform(X, y), truth.noise @ V)
        draws = (analyzer.sample(50).astype(float) ** 2).sum(1)
        stderr = draws.std(ddof=1) / 50**0.5
        self.drawn("sample: mean of ‖ε‖²", draws.mean(), trace, stderr)
        overlap = _overlap(truth.eigenvectors, truth.covariance_eigenvectors)
        self.exact("score: overlap of U and V", analyzer.score(X, y), overlap, 1e-2)
        spectrum = fm.noise_spectrum(risk, theta, k)
        self.drawn("noise_spectrum: ‖Σ‖_F", spectrum.norm, norm)
        self.drawn("  effective rank", spectrum.effective_rank, trace**2 / norm**2)
        self.exact("  share", spectrum.share, gamma[:k].sum() / trace)
        sizes = fm.gradient_noise(risk, theta)
        self.exact("gradient_noise: ‖g₀‖", sizes.gradient_norm, g)
        m = BATCH_SIZE
        self.exact("  noise_norm √(Tr(Σ)/m)", sizes.noise_norm(m), (trace / m) ** 0.5)
        wanted = (LR * trace / m) ** 0.5
        self.exact("  diffusion_norm √(ηTr(Σ)/m)", sizes.diffusion_norm(m, LR), wanted)
        self.exact("  noise scale", sizes, trace / g**2)
        along = truth.gradient @ truth.hvp(truth.gradient)
        product = truth.trace_product
        wanted = Known(product.value / along, product.stderr / abs(along))
        self.drawn(
            "curvature_noise_scale", fm.curvature_noise_scale(risk, theta), wanted
        )
        some = truth.noisy
        ratio = (truth.gradient[some] ** 2 / truth.variances[some]).mean()
        self.exact(
            "gradient_signal_to_noise", fm.gradient_signal_to_noise(risk, theta), ratio
        )

    def alignment_rows(self) -> None:
        truth, k, D = self.truth, self.k, self.truth.n_params
        table = self.noise.alignment(k)
        numbers, pairs = table.to_frame(), table.pairs
        U, V = truth.eigenvectors, truth.covariance_eigenvectors
        lam, gamma = truth.eigenvalues, truth.covariance_eigenvalues
        inner = np.abs(U.T @ V)
        residual = k - (inner**2).sum()
        angles = np.sort(subspace_angles(U, V))
        trace_h, trace_s = truth.hessian_diagonal.sum(), truth.variances.sum()
        norm_h, norm_s = truth.hessian_norm, truth.covariance_norm
        product = truth.trace_product
        isotropic = trace_h * trace_s / D
        cosine = product.value / (norm_h.value * norm_s)
        shares = product.stderr / product.value, norm_h.stderr / norm_h.value
        variance = ((truth.noise @ U[:, 0]) ** 2).mean()
        for name, wanted in {
            "Tr(H)": trace_h,
            "Tr(Σ)": trace_s,
            "‖H‖_F": norm_h,
            "‖Σ‖_F": norm_s,
            "Tr(HΣ)": product,
            "Tr(H)Tr(Σ)/D": isotropic,
            "anisotropy gain": Known(
                product.value / isotropic, product.stderr / abs(isotropic)
            ),
            "trace alignment": Known(cosine, abs(cosine) * math.hypot(*shares)),
            "a": variance * trace_h / (lam[0] * trace_s),
        }.items():
            value, stderr = numbers.loc[name]
            self.drawn(name, value, wanted, stderr)
        # Eigenvectors are known to the tolerance over the gap to the next eigenvalue.
        loose = 1e-2
        share = ((U.T @ truth.gradient) ** 2).sum() / (truth.gradient**2).sum()
        for name, wanted in {
            "projection residual": residual,
            "projection residual, random": k * (1 - k / D),
            "overlap": 1 - residual / k,
            "gradient share": share,
            "d": -math.log(lam[k] / lam[0]) / math.log(D),
        }.items():
            self.exact(name, table[name], wanted, loose)
        self.exact("|uᵢᵀvᵢ|", pairs["cosine"], np.diag(inner), loose)
        self.exact("|uᵢᵀvⱼ|", table.inner_products, inner, loose)
        self.exact("principal angles", pairs["angle"], angles, loose)
        limit = (
            TOLERANCE
            + DEVIATION
            * (norm_h.stderr + numbers.loc["‖H‖_F", "stderr"])
            / norm_h.value
        )
        wanted = lam[:k] / norm_h.value
        self.exact("λᵢ/‖H‖_F", pairs["hessian_normalised"], wanted, limit)
        limit = TOLERANCE + DEVIATION * numbers.loc["‖Σ‖_F", "stderr"] / norm_s
        wanted = gamma[:k] / norm_s
        self.exact("γᵢ/‖Σ‖_F", pairs["covariance_normalised"], wanted, limit)
        # The functions of two bases, on bases that are exact, and on skew ones.
        bases = torch.tensor(U), torch.tensor(V)
        self.exact("cosines(U, V)", fm.cosines(*bases), np.diag(inner), 1e-9)
        found = fm.principal_angles(*bases)
        self.exact("principal_angles(U, V)", found, angles, 1e-6)
        A = U @ np.triu(np.ones((k, k)))
        skew = torch.tensor(A), torch.tensor(V * np.arange(1, k + 1))
        wanted = np.linalg.norm(A - V @ (V.T @ A)) ** 2
        found = fm.projection_residual(*skew)
        self.exact("projection_residual(skew bases)", found, wanted, 1e-9)
        self.exact("overlap(skew bases)", fm.overlap(*skew), 1 - residual / k, 1e-9)
        found = fm.subspace_share(torch.tensor(truth.gradient), skew[0])
        self.exact("subspace_share(g₀, skew basis)", found, share, 1e-9)

    def trace_product_rows(self) -> None:
        truth, risk = self.truth, self.risk
        low_rank = fm.trace_hessian_covariance(
            risk, self.theta, method="low_rank", k=self.k
        )
        sampled = fm.trace_hessian_covariance(risk, self.theta, method="sampled")
        self.drawn("sampled", sampled, truth.trace_product)
        self.exact("low rank", low_rank, truth.low_rank_trace_product)
        left = truth.variances.sum() - truth.covariance_eigenvalues[: self.k].sum()
        self.exact("  bound", low_rank.bound, truth.largest_magnitude * left)
        if self.part is not self.truth:
            n = self.part.n_examples
            self.section += self._of(n)
        truth, risk = self.part, self.part_risk
        for method in ("exact", "sampled"):
            found = fm.trace_hessian_covariance(risk, self.theta, method=method)
            self.drawn(method, found, truth.trace_product)

    def layer_rows(self) -> None:
        truth, risk, theta, name = (
            self.part,
            self.part_risk,
            self.theta,
            self.sizes.layer,
        )
        n = truth.n_examples
        self.section = f"one layer, {name}{self._of(n)}"
        here = _layers(self.problem)[name]
        units = np.eye(truth.n_params)[here]
        H = np.stack([truth.hvp(unit)[here] for unit in units])
        noise = truth.noise[:, here]
        covariance = noise.T @ noise / n
        values, vectors = np.linalg.eigh(H)
        k = min(self.k, 3)
        U, V = vectors[:, ::-1][:, :k], np.linalg.eigh(covariance)[1][:, ::-1][:, :k]
        found = fm.alignment(risk, theta, k, select=name)
        self.exact("eigenvalues of H", found.hessian_eigenvalues, values[::-1][:k])
        self.exact(
            "projection residual", found.residual, k - ((U.T @ V) ** 2).sum(), 1e-2
        )
        self.drawn("Tr(H)", found.hessian_trace, np.trace(H))
        self.drawn("‖H‖_F", found.hessian_norm, np.linalg.norm(H))
        product = np.trace(H @ covariance)
        self.drawn("Tr(HΣ)", found.trace_product, product)
        mass = -values[values < 0].sum() / np.abs(values).sum()
        found = fm.negative_mass(risk, theta, select=name)
        self.drawn("negative_mass", found, mass, scale=1)  # a share

    def power_law_rows(self) -> None:
        truth = self.truth
        layers = _layers(self.problem)
        if truth.hessian is None:
            chosen = {self.sizes.layer: layers[self.sizes.layer]}
            self.section += ", exact diagonal"
            size = len(chosen[self.sizes.layer])
            found = {
                name: fm.covariance_exponent(
                    self.risk, self.theta, select=name, max_matvecs=size
                )
                for name in chosen
            }
        else:
            found = fm.covariance_exponents(
                self.risk, self.theta, max_matvecs=truth.n_params
            )
        for name, law in found.items():
            x, y = truth.hessian_diagonal[layers[name]], truth.variances[layers[name]]
            some = (x > 0) & truth.noisy[layers[name]]
            line = stats.linregress(np.log(x[some]), np.log(y[some]))
            self.exact(f"{name}: exponent", law, line.slope, 1e-2)
            self.exact(f"{name}: its stderr", law.stderr, line.stderr, 1e-2)

    def gaussianity_rows(self) -> None:
        truth, m, n_batches = self.truth, BATCH_SIZE, 1000
        n = min(5, self.k)
        V = torch.tensor(truth.covariance_eigenvectors[:, :n])
        found = fm.minibatch_gaussianity(
            self.risk,
            self.theta,
            batch_size=m,
            directions=V.to(self.theta.dtype),
            n_batches=n_batches,
        )
        along = truth.noise @ V.numpy()
        self.exact("skewness", found.skewness, stats.skew(along) / m**0.5)
        kurtosis = stats.kurtosis(along) / m
        self.exact("excess kurtosis", found.excess_kurtosis, kurtosis)
        default = fm.minibatch_gaussianity(self.risk, self.theta, batch_size=m, k=n)
        self.exact(
            "  along directions of its own", default.excess_kurtosis, kurtosis, 1e-2
        )
        p_values = stats.kstwo.sf(found.distance, n_batches)
        self.exact("p values of the distances below", found.p_values, p_values)
        rng = np.random.default_rng(SEED)
        scaled = along / along.std(0)
        for j in range(n):
            chosen = rng.integers(truth.n_examples, size=(100 * n_batches // 2, m))
            noise = scaled[chosen, j].sum(1) / m**0.5
            distance = stats.kstest(noise, "norm").statistic
            # The distance errs by at most sup|Fₙ - F|: 1/(2√n) is Fₙ's largest error.
            stderr = 0.5 / n_batches**0.5
            self.drawn(f"distance along v{j + 1}", found.distance[j], distance, stderr)

    def tail_rows(self) -> None:
        """Add rows of tail_index and of tic, both on one layer."""
        truth, layer = self.part, self.sizes.layer
        coordinates = _layers(self.problem)[layer]
        noise = np.abs(truth.noise[:, coordinates])  # no sums that cancel
        X = noise.ravel()
        K = max(k for k in range(1, math.isqrt(len(X)) + 1) if len(X) % k == 0)
        Y, eps = X.reshape(-1, K).sum(1), np.finfo(float).eps
        mean = np.log(np.abs(Y) + eps).mean() - np.log(np.abs(X) + eps).mean()
        found = fm.tail_index(torch.tensor(noise), pooled=True)
        self.exact(
            f"{layer}: tail_index of the |nᵢ|, pooled", found, math.log(K) / mean
        )
        damping = 0.01 * float(truth.ggn_eigenvalues[0])
        found = fm.tic(
            self.part_risk, self.theta, damping=damping, matrix="ggn", select=layer
        )
        wanted = truth.tic(coordinates, damping)
        self.exact(f"{layer}: tic of G, δ = λ₁/100", found, wanted, 1e-2)

    def sharpness_rows(self) -> None:
        truth, n = self.truth, self.sizes.n_draws
        theta, size = truth.theta, np.abs(truth.theta)
        g = truth.gradient
        T = size
        sam = 0.05 * g / np.linalg.norm(g)
        asam = 0.5 * T * (T * g) / np.linalg.norm(T * g)
        trace = truth.hessian_diagonal.sum()
        wanted: dict[str, Known] = {
            "expected": truth.rise(0.01, n, False),
            "trace": Known(0.01**2 / 2 * trace),
            "max_eigenvalue": Known(truth.eigenvalues[0]),
            "sam": Known(truth.value(theta + sam) - truth.loss),
            "asam": Known(truth.value(theta + asam) - truth.loss),
            "adaptive_expected": truth.rise(0.05 * size, n, False),
            "fisher_rao": Known(truth.sweep.fisher_rao),
            "batch": truth.batch_sharpness(min(20, truth.n_examples), 100),
        }
        assert list(wanted) == list(fm.SHARPNESS_MEASURES)
        for name, known in wanted.items():
            scorer = self.scorer.set_params(measure=name)
            scorer.fit(self.problem.X, self.problem.y)
            self.drawn(name, scorer.sharpness_, known, scorer.stderr_)
        options = {"measure_params": {"empirical": True}}
        scorer.set_params(measure="fisher_rao", **options)
        score = -scorer(self.problem.module, self.problem.X, self.problem.y)
        slopes = ((truth.gradients @ theta) ** 2).mean()
        self.exact("fisher_rao, at the labels", score, slopes)
        for name, step, scale in (
            ("expected", 0.01, 1.0),
            ("adaptive_expected", 0.05, size),
        ):
            measure = fm.SHARPNESS_MEASURES[name]
            found = measure(self.risk, self.theta, sigma=step, absolute=True)
            self.drawn(f"{name}, |ΔL|", found, truth.rise(step * scale, n, True))

    def stability_rows(self) -> None:
        truth, N, m = self.truth, self.truth.n_examples, BATCH_SIZE
        edge = fm.edge_of_stability(self.risk, self.theta, lr=LR)
        self.exact("edge_of_stability λ₁η/2", edge, truth.eigenvalues[0] * LR / 2)
        bound = (m * (N - 1) / (N - m)) ** 0.5 / LR
        self.exact("non_uniformity_bound", fm.non_uniformity_bound(LR, m, N), bound)
        truth, risk, theta = self.part, self.part_risk, self.theta
        self.section = f"stability{self._of(truth.n_examples)}"
        probes, steps = self.sizes.quadrature
        mass = fm.negative_mass(risk, theta, n_probes=probes, n_steps=steps)
        known = truth.negative_mass(*self.sizes.quadrature)
        self.drawn("negative_mass", mass, known, scale=1)
        operator = HessianOperator(risk, theta)
        density = spectral_density(operator, n_probes=probes, n_steps=steps, rng=1)
        self.drawn(
            "density_negative_mass", fm.density_negative_mass(density), known, scale=1
        )
        small = self.truth.first(self.sizes.small)
        self.section = f"stability{self._of(small.n_examples)}"
        risk = self.risk.subset(torch.arange(small.n_examples))
        found = fm.non_uniformity(risk, theta)
        self.exact("non_uniformity", found, small.non_uniformity, 2e-3)

    def _of(self, n: int) -> str:
        return f", first {n} examples" if n < self.truth.n_examples else ""


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    if isinstance(values, np.ndarray | list) or hasattr(values, "to_numpy"):
        return np.asarray(values, dtype=float)
    return np.array(float(values))


def _shown(values: np.ndarray) -> float:
    """Return a number as it is, of a vector the norm."""
    return float(values) if values.ndim == 0 else float(np.linalg.norm(values))


def _overlap(A: np.ndarray, B: np.ndarray) -> float:
    """Return the mean squared cosine of the principal angles."""
    return float((np.cos(subspace_angles(A, B)) ** 2).mean())


def _layers(problem: Problem) -> dict[str, np.ndarray]:
    """Return the coordinates of each module's own parameters."""
    layers: dict[str, list[int]] = {}
    start = 0
    for name, parameter in problem.module.named_parameters():
        owner = name.rpartition(".")[0]
        stop = start + parameter.numel()
        layers.setdefault(owner, []).extend(range(start, stop))
        start = stop
    return {name: np.array(indices) for name, indices in layers.items()}
