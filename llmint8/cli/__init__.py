"""The command `llmint8`: subcommands in `commands/`, and what they have in common beside it."""
