"""The block layer: bios and what becomes of them. Knows nothing of virtio."""
