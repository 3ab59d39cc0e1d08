"""One technology, one file: everything that knows a driver."""
