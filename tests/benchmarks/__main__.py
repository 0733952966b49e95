"""``make bench``: prints a table and writes bench.json, a row a number that we claim.

``make bench BENCH="plan fleet"`` runs some of the suites and leaves the other rows of bench.json.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

from tests.benchmarks.row import Row

OUT = Path("bench.json")
# A suite is a module here with `rows() -> list[Row]`; the quick ones first.
SUITES = ("trials", "gates", "plan", "fleet_reads", "capacity", "ingest", "offers", "fleet")


def main(chosen: list[str]) -> int:
    unknown = sorted(set(chosen) - set(SUITES))
    if unknown:
        print(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}", file=sys.stderr)
        return 2
    kept = {one["name"]: one for one in _read()} if chosen else {}
    for name in chosen or SUITES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found: list[Row] = import_module(f"tests.benchmarks.{name}").rows()
        kept |= {one["name"]: one for one in found}
        OUT.write_text(json.dumps(list(kept.values()), indent=2) + "\n")
        _print(found)
    return 0


def _read() -> list[Row]:
    found: list[Row] = json.loads(OUT.read_text()) if OUT.exists() else []
    return found


def _print(rows: list[Row]) -> None:
    print(f"{'name':32}{'value':>10} {'unit':12}{'goal':>10}{'reference':>12}{'ratio':>9}")
    for one in rows:
        reference = "" if one["reference"] is None else f"{one['reference']:.4g}"
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.3g}"
        value = f"{one['value']:10.4g} {one['unit']:12}"
        print(f"{one['name']:32}{value}{one['goal']:>10}{reference:>12}{ratio:>9}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
