"""`python -m virtblk`: the same as the `virtblk` command."""

import sys

from virtblk.cli import main

sys.exit(main())
