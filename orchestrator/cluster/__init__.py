"""Ray itself: connecting, resources, jobs, actors that share calls, and the mailbox between driver and workers."""
