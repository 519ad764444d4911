"""Where a bio enters: the request path or the bio path, whichever the queue's `use_bio` says (Linux: submit_bio).

Called by submitters. This is the interface alone: the bio path behind it, whatever `use_bio` says.
"""

from __future__ import annotations

from virtblk.driver.bio_path import virtblk_make_request
from virtblk.jit.kernel import kernel


@kernel
def submit_bio(d, sub, bio, now_ns):
    """Submit a bio: 0, or -errno once the queue is over. Its completion comes through virtblk_harvest."""
    return virtblk_make_request(d, sub, bio, now_ns)


@kernel
def blk_finish_plug(d, sub):
    """Send what the submitter's plug holds: 0, or -errno once the queue is over. Harmless with an empty plug."""
    return 0
