"""The command line: one module a subcommand; parse, call the library, render."""
