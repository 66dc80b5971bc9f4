"""Runs an unmodified checkout of StyleGAN2-ADA, or of a relative, with our loss and plugins."""
