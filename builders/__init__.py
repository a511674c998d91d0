"""What turns locked inputs into sources, wheels, weights and images."""
