"""Linear models fitted to noisy simulations, and the Gauss-Newton step over them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def fit_models(states: Array, controls: Array, residuals: Array, *, ridge: float, pooling: float) -> tuple[Array, Array]:
    """Linear models of each step, by ridge regression over S simulations of T steps.

    Args:
      states: (S, T+1, nx) differences from the nominal simulation.
      controls: (S, T, nu) likewise.
      residuals: (S, T, R) likewise.
      ridge: a sample.
      pooling: weight of the neighbouring steps' samples in a step's regression.

    Returns:
      (T, nx, nx+nu) of the next state and (T, R, nx+nu) of the residuals, both from the state and the control.
    """
    nx = states.shape[2]
    causes = np.concatenate([states[:, :-1], controls], axis=2).swapaxes(0, 1)
    # The state's change rather than the next state: ridge then pulls towards "stays as it is", not towards zero.
    effects = np.concatenate([states[:, 1:] - states[:, :-1], residuals], axis=2).swapaxes(0, 1)
    causes_t = causes.swapaxes(1, 2)
    gram, cross = _pool(causes_t @ causes, pooling), _pool(causes_t @ effects, pooling)
    gram += ridge * len(states) * np.eye(gram.shape[1])
    solution = np.asarray(np.linalg.solve(gram, cross), dtype=np.float64).swapaxes(1, 2)
    solution[:, :nx, :nx] += np.eye(nx)
    return solution[:, :nx], solution[:, nx:]


def _pool(values: Array, weight: float) -> Array:
    """Each step's sums with its neighbours' at a weight, as a mean."""
    result = values.copy()
    result[1:] += weight * values[:-1]
    result[:-1] += weight * values[1:]
    return result / (1.0 + 2.0 * weight)


def solve_riccati(dynamics: Array, residuals: Array, nominal: Array, damping: float) -> tuple[Array, Array]:
    """The controls that minimize the modelled sum of squared residuals.

    Args:
      dynamics, residuals: (T, nx, nx+nu) and (T, R, nx+nu), of `fit_models`.
      nominal: (T, R) residuals of the nominal simulation.
      damping: weight of the squared change of the controls.

    Returns:
      Feedback gains (T, nu, nx) and the change (T, nu) of the controls.
    """
    steps, nx, both = dynamics.shape
    nu = both - nx
    gains, change = np.empty((steps, nu, nx)), np.empty((steps, nu))
    value, slope = np.zeros((nx, nx)), np.zeros(nx)
    extra = damping * np.eye(nu)
    hessians = residuals.swapaxes(1, 2) @ residuals
    slopes = (residuals.swapaxes(1, 2) @ nominal[:, :, None])[:, :, 0]
    for step in range(steps - 1, -1, -1):
        model = dynamics[step]
        hessian = model.T @ value @ model + hessians[step]
        gradient = model.T @ slope + slopes[step]
        uu, ux = hessian[nx:, nx:], hessian[nx:, :nx]
        solution = np.linalg.solve(uu + extra, np.concatenate([ux, gradient[nx:, None]], axis=1))
        gain, shift = -solution[:, :nx], -solution[:, nx]
        gains[step], change[step] = gain, shift
        # The value of these controls, not of the best ones: with damping the two differ.
        value = hessian[:nx, :nx] + gain.T @ uu @ gain + gain.T @ ux + ux.T @ gain
        value = (value + value.T) / 2
        slope = gradient[:nx] + gain.T @ (uu @ shift + gradient[nx:]) + ux.T @ shift
    return gains, change
