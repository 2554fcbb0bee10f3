"""Attacks on spiking networks, and the gradients that they follow."""
