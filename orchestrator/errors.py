"""Everything that can go wrong and is not a bug. Each message is one line that names what to change.

StnError
├── SpecError        the spec, or an option, is wrong
├── RunError         the run's folder does not fit what is asked of it
├── PackError        a network or images cannot be written as data that any machine reads
├── LogError         a log to be imported is none, or contradicts itself
├── TrainingError    training did not finish
└── WorkersError     workers cannot do the work at all
"""


class StnError(Exception):
    """Base of all expected errors; the message is for the user."""


class SpecError(StnError):
    """The spec, or an option, is wrong."""


class RunError(StnError):
    """The run is missing, damaged, or another one."""


class PackError(StnError):
    """A network or images cannot be written as data that any machine reads."""


class LogError(StnError):
    """A log to be imported is none, or contradicts itself."""


class TrainingError(StnError):
    """Training did not finish."""


class TrainingInterrupted(TrainingError):
    """Training failed after it had come on: it may go on from a newer checkpoint."""


class WorkersError(StnError):
    """Workers do not start, or fail at everything."""
