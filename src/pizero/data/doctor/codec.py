"""What a FAST codec would lose of a dataset's own actions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pizero.data.doctor.finding import Finding, Severity
from pizero.data.doctor.names import dim_text, dims_text
from pizero.data.fast.fidelity import Fidelity

RELATIVE: dict[Severity, float] = {"error": 0.5, "warning": 0.2}
"""Root mean square error of a dimension by its standard deviation, from which on it is a finding; LeRobot has 0.2."""
GRIPPER: dict[Severity, float] = {"error": 0.05, "warning": 0.01}
"""Share of actions in which a gripper comes out on the other side of its middle."""
ADVICE = "fit a codec on this data (pizero fit-codec), with a larger --scale or --vocab-size if it was"


def check_codec(found: Fidelity) -> Iterator[Finding]:
    """Dimensions whose decoded actions are too far from the recorded ones, and grippers that would move otherwise."""
    found_dims = set[int]()
    for severity, limit in RELATIVE.items():
        bad = [dim for dim in np.flatnonzero(found.relative >= limit).tolist() if dim not in found_dims]
        found_dims |= set(bad)
        if bad:
            dim = max(bad, key=lambda dim: found.relative[dim])
            yield Finding(
                severity, "codec", dims_text("action", bad, found.names),
                f"decoded actions are off by {100 * found.relative[dim]:.0f} % of the standard deviation for "
                f"{dim_text('action', dim, found.names)} (median {found.median[dim]:.3g}, worst "
                f"{found.worst[dim]:.3g})",
                ADVICE,
            )  # fmt: skip
    for dim, share in found.grippers.items():
        worst: list[Severity] = [severity for severity, limit in GRIPPER.items() if share >= limit]
        if worst:
            yield Finding(
                worst[0], "codec and gripper", dim_text("action", dim, found.names),
                f"in {100 * share:.1f} % of the actions it comes out on the other side of its middle", ADVICE,
            )  # fmt: skip
    if found.repaired:
        yield Finding(
            "note", "codec without tokens", "action",
            f"{100 * found.repaired:.1f} % of the chunks hold coefficients that the codec has no tokens for; they "
            "become the nearest ones", ADVICE,
        )  # fmt: skip
