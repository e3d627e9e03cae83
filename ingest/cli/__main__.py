"""Let `python -m ingest.cli` run the command `ingest`."""

import sys

from ingest.cli import main

sys.exit(main())
