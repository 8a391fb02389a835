"""Numbers about a candidate, each with its price and its trust."""
