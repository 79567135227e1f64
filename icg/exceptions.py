"""What `icg` raises beside ValueError for wrong arguments."""


class BadWeights(ValueError):
    """Weights on disk that must not be used: NaN, a wrong shape, a wrong space, a missing file."""


class Unsupported(ValueError):
    """A checkpoint of a class that nothing here knows how to drive; the message names the class."""
