//! The two-process harness: what the end-to-end tests, the demonstration and the benchmarks share.
//!
//! Owns: a pair of real agents in a temporary folder ([`site`]), the operator's command ([`ctl`]),
//! the link between the agents ([`proxy`]), a guest ([`nbd_client`]) that can prove which of its
//! writes a disk holds ([`writer`]), disks ([`disks`]) with content ([`data`]), and the demonstration
//! ([`demo`]).
//!
//! Does not do: replication, or anything else that the product does. It sees the agents as an
//! operator and a hypervisor do: through their command, their sockets and their files. Everything
//! blocks; waits have deadlines and poll, and no test sleeps for a fixed time.

pub mod bins;
pub mod ctl;
pub mod data;
pub mod demo;
pub mod disks;
pub mod guest;
pub mod nbd_client;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod site;
pub mod tools;
pub mod wait;
pub mod writer;
