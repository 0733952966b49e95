"""What can be wrong with a document on the wire.

ProtocolError
├── MalformedError         not the document it claims to be: names the field
├── TooLargeError          longer than the limit for its kind
├── UnknownTopicError      a topic outside the contract
└── UntrustedError         no signature by a trusted key
"""


class ProtocolError(Exception):
    """The root of this tree; `code` is stable and goes over the wire."""

    code = "protocol"


class MalformedError(ProtocolError):
    """A document is not of its schema; the message names the field."""

    code = "protocol.malformed"


class TooLargeError(ProtocolError):
    """A document is longer than the limit for its kind."""

    code = "protocol.too_large"


class UnknownTopicError(ProtocolError):
    """A topic is outside the contract."""

    code = "protocol.topic"


class UntrustedError(ProtocolError):
    """A document carries no signature by a trusted key."""

    code = "protocol.untrusted"
