"""The subcommands: a file each, with a function `command` that imports what it needs when it runs."""
