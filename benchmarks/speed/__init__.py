"""What purification and its gradients cost in time and memory."""
