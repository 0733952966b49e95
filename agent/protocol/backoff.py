"""How devices come back after a lost connection: with full jitter, so that no herd comes at once.

A device that lost its connection waits a random time below `longest_pause_s` before it tries
again (full jitter: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
A control plane whose inbox lags asks for more (`messages.BackOff`).
"""

FIRST_PAUSE_S = 15.0
"""A device cannot tell its own short break from the end of a broker that ten thousand share. Over
this time ten thousand handshakes with mutual TLS (1.5 ms of processor each) fit on one core."""
LONGEST_PAUSE_S = 600.0
STEADY_S = 60.0
"""A connection that held for less was no proof that the broker can bear us."""
MOST_TOLD_S = 900.0
"""What a control plane may ask for: it is unsigned, so it must not be able to silence a device."""


def longest_pause_s(failures: int, *, base_s: float, cap_s: float, told_s: float = 0.0) -> float:
    """Return the upper end of the random pause before the next try, in seconds.

    Args:
        failures: tries since a connection last held, 0 after the loss of one.
        base_s: the first window.
        cap_s: the widest window.
        told_s: what the control plane asked for; never more than `MOST_TOLD_S` counts.
    """
    window = min(cap_s, base_s * float(2 ** min(failures, 16)))
    return max(window, min(told_s, MOST_TOLD_S))
