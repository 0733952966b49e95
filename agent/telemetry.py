"""What the device says of itself: hello, state and heartbeat, composed from the machine's state."""

import agent
from agent.lifecycle import Idle, State
from agent.protocol import messages
from agent.protocol.messages import Hardware
from agent.protocol.words import Reason
from agent.transitions import candidate, digest_of, phase, running

CAPABILITIES = ["causal-lm", "range", "revert"]


def hello(state: State, boot: int, hardware: Hardware) -> messages.Hello:
    """Return the greeting of a fresh connection."""
    return messages.Hello(
        boot=boot,
        generation=state.standing.generation,
        digest=digest_of(running(state)),
        last_known_good=digest_of(state.standing.good),
        agent=agent.__version__,
        capabilities=CAPABILITIES,
        hardware=hardware,
        blueprint=state.standing.blueprint,
    )


def reported(state: State, boot: int, seq: int) -> messages.State:
    """Return the whole reported state."""
    standing = state.standing
    outcome = standing.outcome if isinstance(state, Idle) else None
    return messages.State(
        boot=boot,
        seq=seq,
        generation=standing.generation,
        digest=digest_of(running(state)),
        previous=digest_of(standing.previous),
        last_known_good=digest_of(standing.good),
        candidate=digest_of(candidate(state)),
        state=outcome.state if outcome else phase(state),
        reason=outcome.reason if outcome else Reason.NONE,
    )


def heartbeat(state: State, boot: int, uptime_s: int, *, healthy: bool) -> messages.Heartbeat:
    """Return the sign of life."""
    return messages.Heartbeat(
        boot=boot,
        generation=state.standing.generation,
        digest=digest_of(running(state)),
        uptime_s=uptime_s,
        healthy=healthy,
    )
