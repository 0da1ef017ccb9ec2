"""Images: where a set lies on this machine, its pixels and labels, and batches of them."""
