"""The command line: words in, one call, text out. Only here does a flag have a name."""
