"""Long runs, each a command of its own: ``python -m tests.long NAME``. The suite has a short form of each."""
