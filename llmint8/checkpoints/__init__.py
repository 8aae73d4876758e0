"""Checkpoints on disk: what their files hold, and the formats they come in."""
