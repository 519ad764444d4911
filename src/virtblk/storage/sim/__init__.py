"""`sim:PROFILE?k=v`: disks that keep their data in memory and take the time that a model of a real disk says.

The models are functions of a state, a request and a time; they read no clock and never wait (`sata`, `fusion_io`, over
the records of `state`). Who calls them does both (`device.sim_worker`, and `disk` under filters).
"""
