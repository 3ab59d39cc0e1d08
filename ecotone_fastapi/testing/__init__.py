"""What a test of an application needs: the flow test, fixtures and conformance suites."""
