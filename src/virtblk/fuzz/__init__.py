"""`virtblk fuzz`: two attackers on a vhost-user-blk device, the front end that lies and the guest that lies."""
