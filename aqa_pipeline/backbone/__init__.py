"""The I3D network, its weights, and frames to features."""
