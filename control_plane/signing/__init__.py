"""Keys and signatures: the certificate authority of the fleet, bundle and order signing."""
