"""One run: its model, its calibration data, and what verbs that change weights share."""
