"""What an operator sees of an application, gathered once: for the command line, the HTTP API, the page and metrics."""
