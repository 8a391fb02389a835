"""Block families: each file holds one design, and registers itself."""
