//! Which way to a peer, and whether there is one.
