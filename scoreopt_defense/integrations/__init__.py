"""What other libraries need beyond a module from images to logits."""
