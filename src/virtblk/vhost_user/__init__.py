"""vhost-user: the control channel between a driver and its device. Ordinary Python; no ring is touched here.

One concern a file: `message` (bytes), `connection` (file descriptors), `frontend` (the driver's side), `backend` and
`vring` (the device's side: messages, and the states of its rings), `listener` (who may connect).
"""
