"""Makes the golden files under tests/golden."""
