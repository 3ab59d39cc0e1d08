"""Features of messages: asynchronous handlers, failures and the dead letter, transactions."""
