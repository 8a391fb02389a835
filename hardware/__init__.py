"""What a device runs, what that costs, and how it is measured. Knows nothing of torch."""
