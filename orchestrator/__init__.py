"""What runs in the driver: spec, plan, dispatch, reduce, report, and the command line. Its names are the Python API.

``from orchestrator import certify`` is the command ``stn certify`` as a function, and so on; see docs/python.md. A name
is imported when it is first asked for: Ray and PyTorch take seconds.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import (
        attack,
        certify,
        compare,
        plan,
        reduce,
        report,
        results,
        status,
        submit,
        sweep,
        train,
        verify,
    )
    from orchestrator.errors import (
        LogError,
        PackError,
        RunError,
        SpecError,
        StnError,
        TrainingError,
        WorkersError,
    )
    from orchestrator.packing.pack import pack
    from orchestrator.spec import Spec, load_spec
    from workers.store import StoreError

__all__ = [
    "LogError",
    "PackError",
    "RunError",
    "Spec",
    "SpecError",
    "StnError",
    "StoreError",
    "TrainingError",
    "WorkersError",
    "attack",
    "certify",
    "compare",
    "load_spec",
    "pack",
    "plan",
    "reduce",
    "report",
    "results",
    "status",
    "submit",
    "sweep",
    "train",
    "verify",
]

#: Where names are that are not in ``orchestrator.api``.
_ELSEWHERE = {
    "Spec": "orchestrator.spec",
    "load_spec": "orchestrator.spec",
    "pack": "orchestrator.packing.pack",
    "StoreError": "workers.store",
    **{name: "orchestrator.errors" for name in __all__ if name.endswith("Error") and name != "StoreError"},
}

if not TYPE_CHECKING:  # to a type checker, it would make any name one of the package's

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_ELSEWHERE.get(name, "orchestrator.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
