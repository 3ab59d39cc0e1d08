"""Benchmarks: `poe bench`. Each figure stands beside a limit that does the same work in the same run."""
