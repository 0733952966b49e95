"""The guard: ends a supervisor's children when the supervisor itself was killed.

It runs as a process of its own and reads `+<group>` and `-<group>` lines from its standard input;
when that closes, whoever wrote there is gone, and every process group still listed is ended.
Standard library only, so that it stays small and starts at once.
"""

import os
import signal
import sys
import time

GRACE_S = 5.0
POLL_S = 0.05


def main() -> None:
    """Read until the end of input, then end what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    end(groups)


def end(groups: set[int]) -> None:
    """Ask every group to end, and kill what has not after a while."""
    left = {group for group in groups if send(group, signal.SIGTERM)}
    give_up = time.monotonic() + GRACE_S
    while left and time.monotonic() < give_up:
        time.sleep(POLL_S)  # these are not our children: nothing can be awaited
        left = {group for group in left if send(group, 0)}
    for group in left:
        send(group, signal.SIGKILL)


def send(group: int, number: int) -> bool:
    """Send a signal to a process group; return whether anybody was there."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so when only zombies are left
        return False
    return True


if __name__ == "__main__":
    main()
