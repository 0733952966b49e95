"""Private files of the keyring: made once, whole, and readable by their owner only."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.domain.errors import InvalidError


def make_private(folder: Path) -> None:
    """Create `folder` for its owner alone; one that others may read is closed to them."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`; the kernel unlocks it when the holder dies."""
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_private(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, mode 0600, on disk when this returns."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_or_create(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in `path`, made now if there is no file; call with the folder locked.

    Raises:
        InvalidError: the file holds something else.
    """
    if not path.exists():
        write_private(path, _fresh())
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidError(f"{path}: not a private key in PEM; restore it", field="keys") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidError(f"{path}: not an ECDSA key on P-256; restore it", field="keys")
    return key


def _fresh() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
