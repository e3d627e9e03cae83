"""Show where files would go with a new configuration, if that differs from the old one.

python preview_routes.py old.toml new.toml image.dcm ...
"""

import sys
from pathlib import Path

import ingest


def compare_routes(old: Path, new: Path, files: list[Path]) -> list[str]:
    """Return a line for each file whose destinations differ."""
    before, after = ingest.load_config(old), ingest.load_config(new)
    lines = []
    for file in files:
        one, other = ingest.route(before, file), ingest.route(after, file)
        if set(one.destinations) != set(other.destinations):
            lines.append(f"{file.name}: {_name(one.destinations)} -> {_name(other.destinations)}")
            for checked in other.routes:
                missed = [each for each in checked.conditions if not each.holds]
                reason = (
                    f"{missed[0].key} is {', '.join(missed[0].values) or 'missing'}" if missed else "matches"
                )
                lines.append(f"  {checked.route}: {reason}")
    return lines


def _name(destinations: tuple[str, ...]) -> str:
    return ", ".join(destinations) or "nowhere"


if __name__ == "__main__":
    print(
        "\n".join(compare_routes(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]))
    )
