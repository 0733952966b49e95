"""The closed vocabularies of the wire: states, verdicts, reason codes.

A reader meets only these words; free text has no place on the wire (no prompt, no answer, no
user text can leave a device through a field that does not exist).
"""

from enum import StrEnum


class ExecutionState(StrEnum):
    """One device's part in one rollout."""

    QUEUED = "QUEUED"
    OFFERED = "OFFERED"
    DOWNLOADING = "DOWNLOADING"
    STAGED = "STAGED"
    BENCHMARKING = "BENCHMARKING"
    ACTIVATING = "ACTIVATING"
    SOAKING = "SOAKING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    ROLLED_BACK = "ROLLED_BACK"
    TIMED_OUT = "TIMED_OUT"
    CANCELED = "CANCELED"
    SUPERSEDED = "SUPERSEDED"


class Verdict(StrEnum):
    """What a trial found, per metric and as a whole."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    REGRESSION = "regression"
    WRONG_OUTPUT = "wrong_output"
    OVER_LIMIT = "over_limit"
    INCONCLUSIVE = "inconclusive"


class Reason(StrEnum):
    """Why a device entered a state. Stable: never rename or reuse one."""

    NONE = ""
    ORDER_MALFORMED = "order.malformed"
    ORDER_SIGNATURE = "order.signature"
    ORDER_DEVICE = "order.device"
    ORDER_EXPIRED = "order.expired"
    ORDER_OLDER = "order.older"
    BUNDLE_MALFORMED = "bundle.malformed"
    BUNDLE_SIGNATURE = "bundle.signature"
    BUNDLE_DIGEST = "bundle.digest"
    BUNDLE_MISMATCH = "bundle.mismatch"
    BUNDLE_OLDER = "bundle.older"
    HARDWARE_MISMATCH = "hardware.mismatch"
    RUNTIME_MISSING = "runtime.missing"
    DISK_FULL = "disk.full"
    DISK_ERROR = "disk.error"
    DOWNLOAD_FAILED = "download.failed"
    DOWNLOAD_REFUSED = "download.refused"
    DOWNLOAD_LENGTH = "download.length"
    DOWNLOAD_DIGEST = "download.digest"
    TRIAL_PASSED = "trial.passed"
    TRIAL_REGRESSION = "trial.regression"
    TRIAL_WRONG_OUTPUT = "trial.wrong_output"
    TRIAL_OVER_LIMIT = "trial.over_limit"
    TRIAL_INCONCLUSIVE = "trial.inconclusive"
    TRIAL_CRASHED = "trial.crashed"
    ACTIVATE_FAILED = "activate.failed"
    SOAK_UNHEALTHY = "soak.unhealthy"
    CRASH_LOOP = "crash.loop"
    OPERATOR = "operator"
    REVERTED = "reverted"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"
    ALREADY_RUNNING = "already.running"
    SOAKED = "soaked"


class Action(StrEnum):
    """What an order asks for."""

    RUN = "run"
    """Make this bundle the running one, after a trial."""
    REVERT = "revert"
    """Return to this bundle, already confirmed here once: no trial, an older release is fine."""
    HOLD = "hold"
    """Want nothing new: drop what has not been activated and keep what runs."""
