"""The health check of the API's container: is /readyz answered with 200?"""

import ssl
import sys
import urllib.request


def main() -> int:
    """Return 0 when it is; what else is printed by Python is the reason."""
    url, ca = sys.argv[1:]
    with urllib.request.urlopen(url, timeout=4, context=ssl.create_default_context(cafile=ca)):
        return 0  # any other status raises


if __name__ == "__main__":
    sys.exit(main())
