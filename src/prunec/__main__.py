"""`python -m prunec`: the command line where its script is not on the path."""

from prunec.cli.app import main

raise SystemExit(main())
