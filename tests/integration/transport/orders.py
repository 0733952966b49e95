"""Reading an order as a device does: signature first."""

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.protocol import envelope, messages
from agent.protocol.messages import Order
from control_plane.bootstrap import Application


def open_order(app: Application, data: bytes) -> Order:
    """Check an envelope against the fleet's order keys and return what it says."""
    payload, signatures = envelope.open_unverified(data, envelope.ORDER_TYPE)
    trusted = app.keyring.trusted_keys().order
    for key_id, signature in signatures.items():
        public = serialization.load_pem_public_key(trusted[key_id].encode())
        assert isinstance(public, ec.EllipticCurvePublicKey)
        signed = envelope.pae(envelope.ORDER_TYPE, payload)
        public.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    return messages.decode(payload, Order)
