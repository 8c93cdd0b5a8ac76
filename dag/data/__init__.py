"""Images and annotations: real ones read and downloaded, the miniature made."""
