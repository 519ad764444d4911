"""The virtio-blk driver: probe, paths, completion."""
