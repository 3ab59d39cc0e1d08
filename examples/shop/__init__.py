"""A shop: orders come over HTTP, customers are notified through a channel. `python -m examples.shop` runs it."""
