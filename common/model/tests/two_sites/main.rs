//! Model checking of a group at two sites: the real `step`, a network that loses, repeats and reorders,
//! crashes, operators who are honest and operators who are not.
//!
//! The invariants are properties in `model`; those that one step can break are checked where the step
//! is taken, in `machine`. Same-boot grace and silence are modelled under one assumption: the link is well until
//! an agent dies, so that its peer has heard nothing for as long as it is dead. What a statement says
//! of an agent is true when it was signed.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at what it does not expect"
)]

mod caught;
mod deliver;
mod machine;
mod model;
mod mutation;
mod scenarios;
mod script;
mod world;
