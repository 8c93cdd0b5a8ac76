"""Images and annotations: readers, downloads, and the miniature."""
