"""The whole road from a model to the one that is shipped, stage by stage: `prunec run`."""
