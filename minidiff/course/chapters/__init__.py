"""The tasks, one module per chapter: each lists its own in TASKS."""
