"""API tokens and the audit trail."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from control_plane.bootstrap import Application
from control_plane.domain.errors import InvalidError, NotFoundError, UnauthenticatedError
from control_plane.services import audit, tokens
from control_plane.store import schema


def test_a_token_names_whoever_holds_it(app: Application) -> None:
    with app.scope("setup") as scope:
        token = tokens.create_api_token(scope, name="ann")
        other = tokens.create_api_token(scope, name="bob")
    with app.reading("api") as scope:
        assert tokens.authenticate_api(scope, token) == "ann"
        assert tokens.authenticate_api(scope, other) == "bob"


def test_the_secret_is_not_stored(app: Application) -> None:
    with app.scope("setup") as scope:
        token = tokens.create_api_token(scope, name="ann")
        row = scope.tx.execute(select(schema.api_token)).one()
    secret = token.split("_", 2)[2]
    assert all(secret not in str(value) for value in row)


def test_a_changed_unknown_or_misshapen_token_opens_nothing(app: Application) -> None:
    with app.scope("setup") as scope:
        token = tokens.create_api_token(scope, name="ann")
    changed = token[:-1] + ("A" if token[-1] != "A" else "B")
    other_id = f"fla_{'0' * 16}_{token.split('_', 2)[2]}"
    with app.reading("api") as scope:
        for wrong in (changed, other_id, "", "fla__", token + "\n", "Bearer " + token, "ü" * 64):
            with pytest.raises(UnauthenticatedError):
                tokens.authenticate_api(scope, wrong)


def test_a_token_expires(app: Application) -> None:
    with app.scope("setup") as scope:
        token = tokens.create_api_token(scope, name="ann", ttl_s=60)
        assert tokens.authenticate_api(scope, token) == "ann"
        late = replace(scope, now=scope.now + timedelta(seconds=61))
        with pytest.raises(UnauthenticatedError):
            tokens.authenticate_api(late, token)


def test_a_revoked_token_opens_nothing(app: Application) -> None:
    with app.scope("setup") as scope:
        token = tokens.create_api_token(scope, name="ann")
        tokens.revoke_api_token(scope, "ann", reason="left")
        with pytest.raises(UnauthenticatedError):
            tokens.authenticate_api(scope, token)
        with pytest.raises(NotFoundError, match="ann"):
            tokens.revoke_api_token(scope, "ann")


@pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "x" * 129])
def test_a_name_must_be_readable_in_the_audit_trail(sqlite_app: Application, name: str) -> None:
    with sqlite_app.scope("setup") as scope, pytest.raises(InvalidError) as refusal:
        tokens.create_api_token(scope, name=name)
    assert refusal.value.field == "name"


def test_a_token_needs_time(sqlite_app: Application) -> None:
    with sqlite_app.scope("setup") as scope, pytest.raises(InvalidError) as refusal:
        tokens.create_api_token(scope, name="ann", ttl_s=0)
    assert refusal.value.field == "ttl_s"


def test_acts_come_newest_first_filtered_and_in_pages(app: Application) -> None:
    for number in range(5):
        with app.scope("ann" if number % 2 else "bob") as scope:
            name = f"r{number}"
            audit.record(
                scope,
                action="rollout.pause",
                object_kind="rollout",
                object_name=name,
                reason="lunch",
                before={"state": "RUNNING"},
                after={"state": "PAUSED"},
            )
    with app.reading("api") as scope:
        first = audit.list_audit(scope, limit=3)
        rest = audit.list_audit(scope, limit=3, cursor=first.next)
        mine = audit.list_audit(scope, filter='actor = "ann" and name : "r*"')
        with pytest.raises(InvalidError):
            audit.list_audit(scope, filter="nonsense = 1")
        with pytest.raises(InvalidError):
            audit.list_audit(scope, cursor="-1")
    names = [act.object_name for act in [*first.items, *rest.items]]
    assert names == ["r4", "r3", "r2", "r1", "r0"]
    assert rest.next == ""
    assert [act.object_name for act in mine.items] == ["r3", "r1"]
    assert mine.items[0].before == {"state": "RUNNING"}


def _record_and_fail(app: Application) -> None:
    with app.scope("ann") as scope:
        audit.record(scope, action="x", object_kind="rollout", object_name="r")
        tokens.create_api_token(scope, name="")


def test_an_act_that_fails_leaves_no_trace(app: Application) -> None:
    with pytest.raises(InvalidError):
        _record_and_fail(app)
    with app.reading("api") as scope:
        assert audit.list_audit(scope).items == []
