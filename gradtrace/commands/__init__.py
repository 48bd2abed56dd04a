"""The commands of `gradtrace`, one file each; only typer is imported before a command runs."""
