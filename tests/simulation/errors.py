"""What ends a simulated process, and what ends a simulation."""


class KilledError(BaseException):
    """The process is gone, as by SIGKILL: nothing catches this but the simulated machine."""


def hold(good: bool, rule: str, facts: object) -> None:  # noqa: FBT001 - reads as an assertion
    """Raise unless it is good."""
    if not good:
        raise ViolationError(rule, facts)


class ViolationError(BaseException):
    """An invariant does not hold; no process under test may take it for a fault of its own.

    Args:
        rule: the invariant's short name.
        facts: what was seen.
    """

    def __init__(self, rule: str, facts: object) -> None:
        super().__init__(f"{rule}: {facts}")
        self.rule = rule
