"""Everything that is read: models, weights, tokenizers, calibration data; traced into the IR."""
