"""Where the noise levels of a schedule lie: diffusers' timestep spacings and Karras' levels, as pure functions."""

from collections.abc import Callable

import numpy as np

RHO = 7.0


def leading(total: int, steps: int, offset: int) -> np.ndarray:
    """Timesteps ``[steps]``, descending: equal whole distances from 0 up, then moved by ``offset`` (published Stable
    Diffusion; its noisiest level stays below the training's). At full length there is no room for the offset."""
    distance = total // steps
    room = total - 1 - distance * (steps - 1)
    return np.arange(steps)[::-1] * distance + min(offset, room)


def trailing(total: int, steps: int, offset: int) -> np.ndarray:
    """Timesteps ``[steps]``, descending from the last one in equal distances (Lin et al. 2023, arXiv 2305.08891,
    section 3.3); ``offset`` does not matter."""
    return np.round(total - np.arange(steps) * (total / steps)).astype(np.int64) - 1


def linspace(total: int, steps: int, offset: int) -> np.ndarray:
    """Timesteps ``[steps]``, descending, both ends included; ``offset`` does not matter."""
    return np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)


TIMESTEPS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
}


def karras(low: float, high: float, steps: int) -> np.ndarray:
    """Levels ``[steps]`` from ``high`` down to ``low`` (Karras et al. 2022, arXiv 2206.00364, equation 5, rho 7)."""
    ramp = np.linspace(0, 1, steps)
    return (high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
