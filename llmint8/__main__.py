"""`python -m llmint8`."""

from llmint8.cli.main import main

main()
