"""What a user can do wrong, as exceptions.

A `PlscError` is shown as one message without a traceback and ends the process with
exit code 2. Anything else that escapes is a fault of plsc itself: traceback, exit code 1.
"""


class PlscError(Exception):
    """A condition the user can correct; its text says what, where and how."""


class ConfigError(PlscError):
    """The configuration asks for something that does not exist or does not fit."""


class DataError(PlscError):
    """A data set, list file or picture cannot be used."""


class CheckpointError(PlscError):
    """A checkpoint or weights file cannot be read, or does not fit the model."""


class DeviceError(PlscError):
    """The device, the installed Paddle or a system library is not what the run needs."""


class TrainingError(PlscError):
    """The optimisation itself went wrong, for instance a loss that is not finite."""
