"""What goes wrong, by what to do about it.

A `Fault` is ours (broker, S3, Feast, disk): retry it, never dead-letter an event for it. Everything else here is final:
a retry of the same call meets the same answer.
"""


class Fault(Exception):
    """Ours, and a later try may cure it."""


class MessagingFault(Fault):
    """The broker did not answer, or refused us."""


class StorageFault(Fault):
    """Object storage did not answer, or refused us."""


class FeatureFault(Fault):
    """The feature store did not answer, or stayed locked."""


class Stopped(Exception):
    """`storage.retrying` gave up because it was told to stop; its cause is the last fault."""


class Conflict(Exception):
    """Somebody else wrote the object since it was read: read and decide again."""


class OffsetLost(Exception):
    """The broker no longer has the next offset: messages are gone, and skipping them silently is not ours to decide."""


class MessageTooLarge(Exception):
    """Larger than the broker takes."""


class BadPart(Exception):
    """A trained part is not what its card says: hash, name or file is wrong. The release that names it is refused."""


class EmbeddedError(Exception):
    """The embedded broker, S3 or Feast cannot start; the message is one line for a person."""


class UserError(Exception):
    """A command was used wrongly: the text is what a person reads, `status` what the shell gets."""

    status = 2
