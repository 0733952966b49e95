"""What can go wrong on the device.

AgentError
├── ConfigError              a setting or the data folder is wrong: names the field
├── EnrollmentError          the device could not be enrolled: says what to do
├── LinkError                the broker may not be used: says why
├── ChildError               a child process crashed, hung or answered nonsense
├── CanceledError            the step was called off: nobody waits for its answer
├── IllegalTransitionError   an event that this state cannot take: a defect, not a fault
└── StepError                a step of an update failed; `reason` goes over the wire
    ├── DownloadError        bytes could not be had, or were not the promised ones
    ├── DiskError            the disk is full or failing
    └── SlotError            a slot does not hold what its manifest says
"""

from agent.protocol.words import Reason


class AgentError(Exception):
    """The root of this tree."""


class ConfigError(AgentError):
    """A setting or the data folder is wrong."""


class EnrollmentError(AgentError):
    """The device could not be enrolled."""


class LinkError(AgentError):
    """The broker may not be used."""


class ChildError(AgentError):
    """A child process crashed, hung or answered nonsense."""


class CanceledError(AgentError):
    """The step was called off."""


class IllegalTransitionError(AgentError):
    """An event came that this state cannot take."""


class StepError(AgentError):
    """A step of an update failed."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DownloadError(StepError):
    """Bytes could not be had, or were not the promised ones."""


class DiskError(StepError):
    """The disk is full or failing."""


class SlotError(StepError):
    """A slot does not hold what its manifest says."""
