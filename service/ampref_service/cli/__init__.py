"""The verbs that the service brings to the command."""
