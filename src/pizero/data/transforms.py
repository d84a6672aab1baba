"""Small transforms of arrays [..., d], with their inverse where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pizero.data.norm_stats import EPSILON, NEAR_CONSTANT, FieldStats, Mode
from pizero.types import Convention, UserError

Scalar = TypeVar("Scalar", bound=np.generic)

_BOUND = 5.0


@dataclass(frozen=True)
class Normalize:
    """Data units to model scale and back.

    zscore: (x - mean) / (std + epsilon). quantile: (x - q01) / (q99 - q01 + epsilon) * 2 - 1. In float64. Not clipped,
    except that a dimension whose spread in the statistics is below 1e-4 stays within [-5, 5]: a robot that moves where
    the training data never did must not send the model a value of a million.

    Convention "lerobot": the inverse of zscore is x * std + mean; a quantile range has epsilon in its place where it is
    0, and is left alone elsewhere. In float32 and never clipped, so that the model gets the very values, and the state
    in a prompt the very bins, that it was trained with.
    """

    stats: FieldStats
    mode: Mode
    epsilon: float = EPSILON
    convention: Convention = "openpi"

    def __call__(self, x: NDArray[np.number[Any]]) -> NDArray[np.float64]:
        """x [..., d], d at most the statistics' dimensions (those beyond d are not used)."""
        dim = x.shape[-1]
        if dim > self.stats.dim:
            raise UserError(f"normalise: got {dim} dimensions, but the norm stats have {self.stats.dim}")
        offset, scale, _ = (value[:dim] for value in self._offset_and_scales())
        out = (x.astype(offset.dtype) - offset) / scale
        if self.mode == "quantile":
            out = out * 2 - 1
        flat = self.stats.spread(self.mode)[:dim] < NEAR_CONSTANT
        if flat.any() and self.convention == "openpi":
            out = np.where(flat, np.clip(out, -_BOUND, _BOUND), out)
        return out.astype(np.float64)

    def inverse(self, x: NDArray[np.number[Any]]) -> NDArray[np.float64]:
        """x [..., d]; beyond the statistics' dimensions, zscore takes mean 0 and std 1, quantile changes nothing."""
        offset, _, scale = self._offset_and_scales()
        known = min(x.shape[-1], self.stats.dim)
        out = x.astype(offset.dtype)
        if self.mode == "zscore":
            out[..., :known] = out[..., :known] * scale[:known] + offset[:known]
            if self.convention == "openpi":
                out[..., known:] *= 1 + self.epsilon
        else:
            out[..., :known] = (out[..., :known] + 1) / 2 * scale[:known] + offset[:known]
        return out.astype(np.float64)

    def _offset_and_scales(self) -> tuple[NDArray[np.floating[Any]], ...]:
        """Offset, scale on the way in, scale on the way out, each [d], in the type to compute in."""
        offset = self.stats.mean if self.mode == "zscore" else self.stats.q01
        assert offset is not None  # spread() refuses statistics without quantiles
        spread = self.stats.spread(self.mode)
        if self.convention == "openpi":
            return offset, spread + self.epsilon, spread + self.epsilon
        offset, spread, epsilon = offset.astype(np.float32), spread.astype(np.float32), np.float32(self.epsilon)
        if self.mode == "zscore":
            return offset, spread + epsilon, spread
        scale = np.where(spread == 0, epsilon, spread)
        return offset, scale, scale


def pad_to(x: NDArray[Scalar], dim: int) -> NDArray[Scalar]:
    """x [..., d] with zeros appended up to `dim`; longer data is left alone."""
    missing = dim - x.shape[-1]
    return x if missing <= 0 else np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
