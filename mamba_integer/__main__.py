"""`python -m mamba_integer`."""

from mamba_integer.cli import main

raise SystemExit(main())
