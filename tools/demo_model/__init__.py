"""Trains the small SmolVLM-architecture model that ships in models/demo."""
