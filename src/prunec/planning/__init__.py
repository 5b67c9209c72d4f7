"""What goes and what stays: widths, regions and tokens, and what checkpoints can hold."""
