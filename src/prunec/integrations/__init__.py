"""prunec as a part of other tools, each in a module that is imported where the tool is."""
