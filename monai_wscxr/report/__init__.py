"""Results out: what a person receives."""
