"""Lets ``python -m subquad.cli`` stand for the ``subquad`` command."""

import sys

from subquad.cli import main

sys.exit(main())
