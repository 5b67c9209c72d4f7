"""What is written: folders that appear whole, formats, masks, and checks of them."""
