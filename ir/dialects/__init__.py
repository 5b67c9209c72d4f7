"""Op signatures, one table a dialect."""
