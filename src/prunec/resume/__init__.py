"""What an interrupted run finds again: finished steps, keyed by what it read."""
