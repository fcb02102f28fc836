"""`python -m dlm_tui` is `dlm-tui`."""

import sys

from dlm_tui.cli.main import main

sys.exit(main())
