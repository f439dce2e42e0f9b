//! The command as an operator runs it: the real program, judged by its output, its exit code, and QEMU's tools.

mod disk;
mod disk_check;
mod disk_failures;
mod hrl;
mod run;
