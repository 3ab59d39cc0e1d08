"""What an operator sees of an application, gathered once for the web, the command line and the metrics."""
