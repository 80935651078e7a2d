"""The parts of benchmark.py: what one engine does in a process of its own, the table, the plot."""
