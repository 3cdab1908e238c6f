"""What `python -m minidiff` can do, a file per command: NAME, HELP, arguments(parser), run(args)."""
