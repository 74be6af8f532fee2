"""Train with several processes that act as one."""
