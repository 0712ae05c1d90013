"""A new video: its score, how sure, and why."""
