//! The binaries, as operators and hypervisors meet them: two agents as processes, mutual TLS between
//! them over a link that tests can cut, guests over NBD, and the operator's command.
//!
//! Every scenario is played twice: as built, and with the two agents swapped.

#![expect(
    clippy::unwrap_used,
    reason = "a scenario that cannot be played has failed"
)]
#![expect(
    clippy::print_stderr,
    reason = "a scenario that cannot be tried here says so"
)]

mod accidents;
mod bad_disks;
mod commands;
mod crash;
mod demonstration;
mod drill;
mod failover;
mod foreign;
mod grpc;
mod hrl_export;
mod identity;
mod link;
mod points;
mod reopen;
mod replicate;
mod scene;
mod space;
mod tls;

/// Two tests for each scenario: as built, and with the agents swapped.
macro_rules! both_ways {
    ($($scenario:ident),* $(,)?) => {
        $(
            mod $scenario {
                #[test]
                fn as_built() {
                    super::$scenario(false);
                }

                #[test]
                fn swapped() {
                    super::$scenario(true);
                }
            }
        )*
    };
}
pub(crate) use both_ways;
