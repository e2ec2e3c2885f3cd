"""Bytes under keys, how a checkpoint becomes visible, what keeps a store tidy. Knows no setting and no Ray."""
