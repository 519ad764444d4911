"""Virtqueues: virtio_ring_* is the driver's half, vringh_* the device's half."""
