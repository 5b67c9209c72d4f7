"""Recovery: a short training that gives a pruned model its quality back."""
