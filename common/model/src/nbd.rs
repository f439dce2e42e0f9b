//! The NBD codec.
