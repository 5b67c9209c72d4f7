"""The verbs: each composes frontends, passes and backends into one run."""
