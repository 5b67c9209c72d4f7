"""What a run is told: options, targets and recipes, and the mistakes in them."""
