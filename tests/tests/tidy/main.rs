//! The rules of this source tree that the compiler and clippy do not check.
//!
//! Reads the tree, never builds or runs anything. Each rule is one test, and each failure names
//! the file and line. A rule's exceptions are listed beside it, so that a review sees them grow.

#![expect(
    clippy::unwrap_used,
    reason = "a rule that cannot be read is a rule broken"
)]

mod arrows;
mod text;
mod tree;
