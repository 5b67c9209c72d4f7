"""The command line: verbs with their options, and what a person sees of a run."""
