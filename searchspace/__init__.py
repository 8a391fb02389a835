"""What can be built, how it trains, and how it becomes what a device runs."""
