"""A Gaussian process: Matérn-5/2 kernel with a length for each key, and noise, both relative to the signal.

Shapes: N points with a value, P known ones, M new ones, D keys.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, lapack, solve_triangular
from scipy.optimize import minimize

Array = np.ndarray[Any, Any]

USUAL_LENGTH, LENGTH_SPREAD = 0.5, 1.0  # median and logarithmic spread of the prior on lengths
USUAL_NOISE, NOISE_SPREAD = 0.01, 1.5
LENGTHS, NOISES = (0.03, 10.0), (1e-5, 1.0)
JITTER = 1e-6  # keeps the factorization of equal points stable
ITERATIONS = 15


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Lengths of correlation by key, and the variance of the noise."""

    logarithms: Array  # of the lengths, then of the noise

    @property
    def noise(self) -> float:
        return math.exp(self.logarithms[-1]) + JITTER

    def kernel(self, squares_DNM: Array) -> Array:
        """Return the correlations."""
        return _matern(squares_DNM, self.logarithms[:-1])[0]


def fit(squares_DNN: Array, values_N: Array) -> Scales:
    """Return the most probable scales for values of mean 0; the variance of the signal is integrated out at its maximum."""
    usual = np.append(np.full(len(squares_DNN), math.log(USUAL_LENGTH)), math.log(USUAL_NOISE))
    spread = np.append(np.full(len(squares_DNN), LENGTH_SPREAD), NOISE_SPREAD)
    num_values, diagonal = len(values_N), np.diag_indices(len(values_N))

    def loss(logarithms: Array) -> tuple[float, Array]:
        """Return the negative logarithm of the posterior density, and its gradient."""
        scales = Scales(logarithms=logarithms)
        kernel, slope = _matern(squares_DNN, logarithms[:-1])
        kernel[diagonal] += scales.noise
        factor, _ = lapack.dpotrf(kernel, lower=1)
        lower, _ = lapack.dpotri(factor, lower=1)
        inverse = np.tril(lower) + np.tril(lower, -1).T
        weights = inverse @ values_N
        variance = max(float(values_N @ weights) / num_values, JITTER)
        change = 0.5 * (inverse - np.outer(weights, weights) / variance)  # of the loss, with the kernel
        by_length = np.tensordot(squares_DNN, slope * change, 2) * -2 * np.exp(-2 * logarithms[:-1])
        gradient = np.append(by_length, np.trace(change) * math.exp(logarithms[-1]))
        away = (logarithms - usual) / spread
        density = 0.5 * num_values * math.log(variance) + float(np.log(np.diag(factor)).sum())
        return density + 0.5 * float(away @ away), gradient + away / spread

    bounds = [tuple(map(math.log, LENGTHS))] * len(squares_DNN) + [tuple(map(math.log, NOISES))]
    best = minimize(loss, usual, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": ITERATIONS})
    return Scales(logarithms=best.x)


def _matern(squares_DNM: Array, log_lengths_D: Array) -> tuple[Array, Array]:
    """Return the correlations, and their derivative by the squared distance in lengths."""
    scaled = np.sqrt(5 * np.tensordot(np.exp(-2 * log_lengths_D), squares_DNM, 1))
    decay = np.exp(-scaled)
    return (1 + scaled + scaled**2 / 3) * decay, -(5 / 6) * (1 + scaled) * decay


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Means and standard deviations without noise of M points, and the means of the N points with a value."""

    means: Array  # (M)
    deviations: Array  # (M)
    known_means: Array  # (N)


def predict(scales: Scales, known_DPP: Array, values_N: Array, new_DPM: Array) -> Prediction:
    """Predict M points from P ≥ N known ones; those without a value, which are pending, only reduce the deviations."""
    num_values = len(values_N)
    kernel = scales.kernel(known_DPP)
    kernel[np.diag_indices(len(kernel))] += scales.noise
    factor = np.linalg.cholesky(kernel)
    weights_N = cho_solve((factor[:num_values, :num_values], True), values_N)
    variance = max(float(values_N @ weights_N) / num_values, JITTER)
    columns_PM = scales.kernel(new_DPM)
    white_PM = solve_triangular(factor, columns_PM, lower=True)
    return Prediction(
        means=weights_N @ columns_PM[:num_values],
        deviations=np.sqrt(np.maximum(variance * (1 - (white_PM**2).sum(axis=0)), 1e-12)),
        known_means=values_N - scales.noise * weights_N,
    )
