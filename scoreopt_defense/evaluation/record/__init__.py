"""What was found: the record itself, and figures with their intervals out of it."""
