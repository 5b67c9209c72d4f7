"""How long programs take on this machine: measured, tabulated, predicted and corrected."""
