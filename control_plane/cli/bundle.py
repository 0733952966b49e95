"""bundle: look into a signed bundle, check its signature and every byte."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli.exits import CliError, Exit
from control_plane.cli.options import Output
from control_plane.cli.output import Form, say, show, size, table

if TYPE_CHECKING:
    from agent.protocol.manifest import File, Manifest
    from agent.protocol.trust import TrustedKeys

app = typer.Typer(help="Bundles: signed manifests and their files.", no_args_is_help=True)

Source = Annotated[
    str, typer.Argument(help="A bundle's digest, or a folder with manifest.dsse and its files.")
]
MANIFEST = "manifest.dsse"
CHUNK = 1 << 20


@dataclass(frozen=True)
class _Opened:
    """A bundle: its envelope, what that says, and where its files are."""

    envelope: bytes
    digest: str
    manifest: "Manifest"
    folder: Path | None

    def chunks(self, file: "File") -> Iterator[bytes]:
        """Yield a file's bytes, from the folder or from the control plane."""
        if self.folder is not None:
            with (self.folder / file.path).open("rb") as source:
                while chunk := source.read(CHUNK):
                    yield chunk
            return
        from control_plane.cli.client import Client

        with Client() as client:
            yield from client.blob(file.sha256)


@app.command()
def inspect(source: Source, output: Output = Form.TABLE) -> None:
    """Show what a bundle is made of; trusts nothing and checks nothing."""
    import msgspec

    opened = _open(source)
    if output in (Form.JSON, Form.YAML):
        facts: dict[str, Any] = msgspec.to_builtins(opened.manifest)
        show({"digest": opened.digest, **facts}, output, [])
        return
    manifest = opened.manifest
    print(f"bundle     {opened.digest}")
    print(f"model      {manifest.model} {manifest.version} (release {manifest.release})")
    print(f"blueprint  {manifest.blueprint}, recipe {manifest.recipe}")
    for name, value in sorted(manifest.quality.items()):
        print(f"quality    {name} {value:.4g}")
    files = [{"path": f.path, "size": size(f.size), "sha256": f.sha256} for f in manifest.files]
    print(table(files, [("FILE", "path"), ("SIZE", "size"), ("SHA-256", "sha256")]), end="")


@app.command()
def verify(
    source: Source,
    keys: Annotated[
        Path | None,
        typer.Option(help="Trusted keys (JSON, as a device stores them); else the server's own."),
    ] = None,
) -> None:
    """Check the signature, then every file's length and digest."""
    opened = _open(source)
    signer = _check_signature(opened.envelope, _trusted(keys))
    for file in opened.manifest.files:
        _check_file(opened, file)
        say(f"ok  {file.path}")
    print(f"{opened.digest}: signed by {signer[:16]}, {len(opened.manifest.files)} files verified")


def _open(source: str) -> _Opened:
    from agent.protocol import envelope, manifest
    from agent.protocol.errors import ProtocolError

    folder = Path(source)
    local = folder if folder.is_dir() else None
    data = _read(folder / MANIFEST) if local else _fetch(source)
    try:
        payload, _ = envelope.open_unverified(data, envelope.MANIFEST_TYPE)
        return _Opened(data, manifest.digest(payload), manifest.decode(payload), local)
    except ProtocolError as error:
        raise CliError(f"{source}: {error}") from error


def _fetch(digest: str) -> bytes:
    from agent.protocol.manifest import SHA256
    from control_plane.cli.client import Client

    if not SHA256.fullmatch(digest):
        raise CliError(f"{digest!r} is neither a folder nor a digest", Exit.USAGE)
    with Client() as client:
        return client.content(f"/api/v1/bundles/{digest}")


def _trusted(path: Path | None) -> "TrustedKeys":
    from agent.protocol import trust
    from agent.protocol.errors import ProtocolError
    from control_plane.cli.client import Client

    if path is None:
        with Client() as client:
            return trust.decode(client.content("/api/v1/keys"))
    try:
        return trust.decode(_read(path))
    except ProtocolError as error:
        raise CliError(f"{path}: {error}", Exit.USAGE) from error


def _check_signature(data: bytes, trusted: "TrustedKeys") -> str:
    """Return the id of the trusted key that signed; an id in the envelope is only a hint."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from agent.protocol import envelope

    payload, signatures = envelope.open_unverified(data, envelope.MANIFEST_TYPE)
    signed = envelope.pae(envelope.MANIFEST_TYPE, payload)
    for key_id, pem in trusted.bundle.items():
        key = load_pem_public_key(pem.encode())
        if key_id not in signatures or not isinstance(key, ec.EllipticCurvePublicKey):
            continue
        try:
            key.verify(signatures[key_id], signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return key_id
    raise CliError("the manifest carries no signature by a trusted key")


def _check_file(opened: _Opened, file: "File") -> None:
    digest, length = hashlib.sha256(), 0
    try:
        for chunk in opened.chunks(file):
            length += len(chunk)
            digest.update(chunk)
    except OSError as error:
        raise CliError(f"{file.path}: {error.strerror}") from error
    if length != file.size:
        raise CliError(f"{file.path}: {length} bytes, the manifest says {file.size}")
    if digest.hexdigest() != file.sha256:
        raise CliError(
            f"{file.path}: SHA-256 {digest.hexdigest()}, the manifest says {file.sha256}"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}", Exit.USAGE) from error
