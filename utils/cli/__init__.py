"""The `tbt` command: one file per command."""
