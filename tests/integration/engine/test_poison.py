"""One rollout that cannot be moved: the others go on as if it were not there."""

import pytest
from sqlalchemy import update

from agent.protocol.words import ExecutionState
from control_plane.store import schema
from tests.integration.engine.conftest import BLUEPRINTS, Fleet

E = ExecutionState


@pytest.mark.parametrize("poisoned", ["1.1.0", "1.2.0"])
def test_a_rollout_that_cannot_be_read_does_not_stop_the_others(
    fleet: Fleet, poisoned: str
) -> None:
    fleet.add_version("1.2.0")
    names = {
        version: fleet.start(version, selector=f'blueprint = "{blueprint}"')
        for version, blueprint in zip(("1.1.0", "1.2.0"), BLUEPRINTS, strict=False)
    }
    sick = names.pop(poisoned)
    (well,) = names.values()
    with fleet.scope() as scope:
        mine = update(schema.rollout).where(schema.rollout.c.name == sick)
        scope.tx.execute(mine.values(machine={"state": "DANCING"}))
    fleet.finish(well)
    assert fleet.view(well).state == "SUCCEEDED"
    assert len(fleet.in_state(sick, E.OFFERED)) == 3, "what it had done stands"
