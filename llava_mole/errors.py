"""The errors a user meets. Each says what was found, what was expected, what to do."""


class ConfigError(ValueError):
    """A recipe, a configuration or a call asks for something impossible."""


class DataError(ValueError):
    """A sample, an image or a benchmark file is not what it claims to be; names file and line."""


class CheckpointError(RuntimeError):
    """A model folder or a weight file is incomplete, altered, or of another architecture."""


class TrainingError(RuntimeError):
    """A run that was well asked for cannot go on: a loss that is no number, memory that ran out."""
