"""The errors that a user can meet. Each message says what came, what was expected, what to do."""


class ElaProbeError(Exception):
    """Root of all errors raised on purpose; the CLI prints it in one line with exit code 2."""


class OptionError(ElaProbeError):
    """An argument or an option has a value that can't be used."""


class ModelError(ElaProbeError):
    """A model can't be built, or holds no layer attention that can be read."""


class CheckpointError(ElaProbeError):
    """A checkpoint can't be read, is refused, or doesn't fit its model."""


class DataError(ElaProbeError):
    """A data source is missing, empty, or doesn't fit the model."""


class DataWarning(UserWarning):
    """Data was opened, but something about it is probably a mistake."""


class ProbeError(ElaProbeError):
    """The probe saw something other than the sites it was told to expect."""


class AnalysisError(ElaProbeError):
    """An analysis holds too little to answer, or its directory can't be read."""


class PlanError(ElaProbeError):
    """A skip plan is invalid, infeasible, or made for other sites."""


class ProcessError(ElaProbeError):
    """One of several processes is gone, and the others can't go on."""


class OutputError(ElaProbeError):
    """A result can't be written; nothing half-written is left behind."""
