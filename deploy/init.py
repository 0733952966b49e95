"""When the database answers: the schema, a token for people, and one for the simulated device."""

import argparse
from pathlib import Path

from control_plane.bootstrap import Application
from control_plane.domain.errors import UnauthenticatedError
from control_plane.services import enrollment, tokens
from control_plane.signing import keyfiles
from control_plane.store import migrate

DAY_S = 86_400


def main() -> None:
    """Initialise the control plane that the environment describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--admin-token", type=Path, required=True)
    parser.add_argument("--device-token", type=Path, required=True)
    given = parser.parse_args()
    app = Application()
    try:
        migrate.upgrade(app.settings.sqlalchemy_url)
        keep_admin_token(app, given.admin_token)
        with app.scope("init") as scope:
            device = enrollment.create_token(scope, uses=1, ttl_s=DAY_S)
        keyfiles.write_private(given.device_token, device.encode())
    finally:
        app.close()


def keep_admin_token(app: Application, path: Path) -> None:
    """Make a token unless the one in the file still opens the door."""
    known = path.read_text().strip() if path.exists() else ""
    with app.scope("init") as scope:
        try:
            tokens.authenticate_api(scope, known)
        except UnauthenticatedError:
            known = tokens.create_api_token(scope, name="admin")
    keyfiles.write_private(path, known.encode())


if __name__ == "__main__":
    main()
