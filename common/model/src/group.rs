//! The state machine of a group at one site.
