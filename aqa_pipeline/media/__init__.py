"""From a video file or frame folder to the frames of a clip, safely."""
