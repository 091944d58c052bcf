"""python -m dnn: the command line."""

import sys

from dnn.cli import main

sys.exit(main())
