"""Where candidates are evaluated: in this process, in others, or on a Ray cluster."""
