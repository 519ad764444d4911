"""The virtio-blk device: features, config space, parse, validate, execute."""
