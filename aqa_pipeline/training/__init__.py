"""Stage two: heads on cached features."""
