"""The verbs that the workers bring to the command."""
