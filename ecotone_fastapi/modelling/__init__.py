"""Features of state: aggregates, event sourcing, projections, documents."""
