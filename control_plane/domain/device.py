"""A device as selectors and plans see it: plain facts, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NewType

DeviceId = NewType("DeviceId", str)

ACTIVE = "active"
QUARANTINED = "quarantined"
SITE_LABEL = "site"

HEALTHY = "healthy"
UNHEALTHY = "unhealthy"
OFFLINE = "offline"
HEALTH = (QUARANTINED, UNHEALTHY, OFFLINE, HEALTHY)
"""How a device fares in one word, the worst first."""

HardwareValue = str | int | list[str]


def health_of(*, state: str, online: bool, healthy: bool) -> str:
    """Return the one word of HEALTH; of one that is silent nobody knows whether it is well."""
    if state != ACTIVE:
        return QUARANTINED
    if not online:
        return OFFLINE
    return HEALTHY if healthy else UNHEALTHY


@dataclass(frozen=True)
class DeviceFacts:
    """What is known of one device; an absent value is None, an absent label has no key."""

    id: DeviceId
    state: str = ACTIVE
    blueprint: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, HardwareValue] = field(default_factory=dict)
    agent_version: str = ""
    online: bool = False
    healthy: bool = True
    last_seen: datetime | None = None
    enrolled: datetime | None = None
    generation: int = 0
    digest: str = ""
    last_known_good: str = ""
    model: str | None = None
    version: str | None = None
    rollouts: Mapping[str, str] = field(default_factory=dict)

    @property
    def health(self) -> str:
        return health_of(state=self.state, online=self.online, healthy=self.healthy)
