"""What a device stores its data in. Knows nothing of virtio."""
