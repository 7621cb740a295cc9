"""What attacks made of a run, drawn: between the certified curve and the attacked one lies the true robust accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.attacking.robustness import Attacked
from orchestrator.attacking.sandwich import Sandwich
from orchestrator.numerals import NORMS
from stn_core.certificates import CERTIFICATES

#: As the page's own red.
_RED = "#b00020"

#: None of them red.
_COLOURS = ("C0", "C2", "C4", "C1", "C5", "C6", "C8", "C9")


def attacks_figure(attacked: Attacked, sandwiches: Sequence[Sandwich]) -> Figure:
    """A panel for each norm of a certificate or an attack: guaranteed curves and the attacked one, and each attack's
    robust accuracy by size.

    Args:
        attacked: the run's attacks.
        sandwiches: of its lines of certificates; none where it has no certificates.
    """
    of_lines = [CERTIFICATES[one.line.certificate].norm for one in sandwiches]
    norms = list(dict.fromkeys([*of_lines, *attacked.curves["norm"].to_pylist()]))
    figure = Figure(figsize=(8, 4.5 * len(norms)), dpi=110, layout="constrained")
    for norm, axes in zip(norms, figure.subplots(len(norms), squeeze=False)[:, 0], strict=True):
        own = [one for one, of in zip(sandwiches, of_lines, strict=True) if of == norm]
        curves = attacked.curves.filter(pc.equal(attacked.curves["norm"], norm))
        _draw_sandwiches(axes, own)
        _draw_attacks(axes, curves, joined=not own)
        axes.set_xlabel(f"size ({NORMS[norm]}, pixels in [0, 1])")
        axes.set_ylabel("fraction of all images")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, _reach(curves, own))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def _reach(curves: pa.Table, sandwiches: Sequence[Sandwich]) -> float | None:
    """The largest size to draw: attacks in other norms go far beyond what was asked for and certified in this one."""
    if not len(curves):
        return None
    certified = [float(one.radius[one.certified > 0].max(initial=0.0)) for one in sandwiches]
    return 1.05 * max([float(pc.max(curves["size"]).as_py()), *certified])


def _draw_sandwiches(axes: Axes, sandwiches: Sequence[Sandwich]) -> None:
    # What attacks broke, and how far away, is the same for all lines of a norm; only where it is evaluated differs.
    for number, one in enumerate(sandwiches):
        name = f"{one.line.certificate.replace('_', ' ')}, {one.line.protocol}"
        # Both count up to and with the size at which they step: a value holds from the step before.
        radius = np.append(one.radius, one.radius[-1])
        certified = np.append(one.certified, 0.0)
        attacked = np.append(one.attacked, one.attacked[-1])
        colour = _COLOURS[number % len(_COLOURS)] if one.holds else _RED
        label = f"certified: {name}" if one.holds else f"CONTRADICTED: {name}"
        axes.step(radius, certified, where="pre", color=colour, label=label)
        axes.fill_between(radius, certified, attacked, step="pre", color=colour, alpha=0.12, linewidth=0)
    if sandwiches:
        longest = max(sandwiches, key=lambda one: float(one.radius[-1]))
        axes.step(longest.radius, longest.attacked, where="pre", color="black", label="not seen to break")
    if not all(one.holds for one in sandwiches):
        axes.set_title("CONTRADICTED: an attack succeeds within a certified radius", color=_RED)


def _draw_attacks(axes: Axes, curves: pa.Table, *, joined: bool) -> None:
    """Robust accuracy by size; points alone where curves that hold at every size are in the panel."""
    for number, name in enumerate(dict.fromkeys(curves["attack"].to_pylist())):
        own = curves.filter(pc.equal(curves["attack"], name))
        axes.plot(
            own["size"].to_numpy(),
            own["robust_accuracy"].to_numpy(),
            marker="osD^vP*X"[number % 8],
            fillstyle="none",  # several often lie on one another
            linestyle="-" if joined else "",
            color=_COLOURS[(number if joined else number + 4) % len(_COLOURS)],
            label=f"robust: {name}",
        )
