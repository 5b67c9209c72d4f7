"""What a run found and did: data, pages, model cards and pictures."""
