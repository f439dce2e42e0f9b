//! Bodies of the fuzz targets, shared by libFuzzer (`fuzz/`), the replay of the stored corpora, and `mutate`.
//!
//! Owns: one function for each parser, which takes any bytes and panics where a promise is broken; the seeds
//! ([`seeds`]); the mutator for machines without libFuzzer ([`mutate`]); the limit on memory. Does not do: deciding
//! how long to go on, and keeping what was found; `cargo xtask fuzz` does.

#![expect(
    clippy::unwrap_used,
    reason = "a body that cannot prepare its input is broken, and says so by a panic"
)]

pub mod check;
mod file;
pub mod hrl;
pub mod image;
pub mod mutate;
pub mod nbd;
pub mod qcow2;
pub mod record;
pub mod seeds;
pub mod vhd;
pub mod vhdx;
pub mod wire;

use std::alloc::System;
use std::path::{Path, PathBuf};

use cap::Cap;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Memory that a parser may take whatever it reads: its buffers, and the pieces of the body itself.
const MEMORY_MIN: usize = 24 << 20;
/// And as many times its input: an index of what is in the file, and the file itself, which the fake keeps.
const MEMORY_FACTOR: usize = 64;

/// One parser.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of the libFuzzer target, and of the folder of its corpus.
    pub name: &'static str,
    /// Takes any bytes; panics where a promise is broken.
    pub body: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All parsers.
pub const TARGETS: [Target; 13] = [
    Target {
        name: "vhdx",
        body: vhdx::open,
        seeds: seeds::vhdx,
    },
    Target {
        name: "vhdx_child",
        body: vhdx::open_child,
        seeds: seeds::vhdx_child,
    },
    Target {
        name: "vhd",
        body: vhd::open,
        seeds: seeds::vhd,
    },
    Target {
        name: "check_vhdx",
        body: check::vhdx,
        seeds: seeds::vhdx_and_children,
    },
    Target {
        name: "check_vhd",
        body: check::vhd,
        seeds: seeds::vhd,
    },
    Target {
        name: "record",
        body: record::decode,
        seeds: seeds::record,
    },
    Target {
        name: "image",
        body: image::open_any,
        seeds: seeds::image,
    },
    Target {
        name: "qcow2",
        body: qcow2::open,
        seeds: seeds::qcow2,
    },
    Target {
        name: "hrl",
        body: hrl::read,
        seeds: seeds::hrl,
    },
    Target {
        name: "hrl_apply",
        body: hrl::apply,
        seeds: seeds::hrl,
    },
    Target {
        name: "nbd_option",
        body: nbd::options,
        seeds: seeds::nbd_option,
    },
    Target {
        name: "nbd_request",
        body: nbd::requests,
        seeds: seeds::nbd_request,
    },
    Target {
        name: "wire",
        body: wire::messages,
        seeds: seeds::wire,
    },
];

impl Target {
    /// The target of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Gives the parser one input. Memory is measured for the whole process: one run at a time.
    ///
    /// # Panics
    /// When a promise is broken, or memory is not bounded by the input's size.
    pub fn run(&self, input: &[u8]) {
        let before = MEMORY.allocated();
        let peak = MEMORY.max_allocated();
        (self.body)(input);
        let now = MEMORY.max_allocated();
        let bound = MEMORY_MIN + MEMORY_FACTOR * input.len();
        assert!(
            now == peak || now - before <= bound,
            "{} bytes of memory for {} bytes of input: at most {bound}",
            now - before,
            input.len()
        );
    }

    /// Where its stored inputs are.
    #[must_use]
    pub fn corpus(&self) -> PathBuf {
        corpus_root().join(self.name)
    }
}

/// The folder of all corpora.
#[must_use]
pub fn corpus_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}
