//! fio as the guest.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;
use sitepair_tests::tools;

/// What a guest does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) order: Order,
    pub(crate) request_bytes: u32,
    pub(crate) depth: u32,
    /// A flush after so many writes.
    pub(crate) flush_every: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Random,
    Sequential,
}

/// All loads.
pub(crate) const LOADS: [Load; 6] = [
    Load::new("4K random, depth 1", Order::Random, 4096, 1),
    Load::new("4K random, depth 16", Order::Random, 4096, 16),
    Load::new("64K sequential, depth 8", Order::Sequential, 65536, 8),
    Load::new("4K random, depth 1, flush/32", Order::Random, 4096, 1).flushing(),
    Load::new("4K random, depth 16, flush/32", Order::Random, 4096, 16).flushing(),
    Load::new(
        "64K sequential, depth 8, flush/32",
        Order::Sequential,
        65536,
        8,
    )
    .flushing(),
];

impl Load {
    const fn new(name: &'static str, order: Order, request_bytes: u32, depth: u32) -> Self {
        Self {
            name,
            order,
            request_bytes,
            depth,
            flush_every: None,
        }
    }

    const fn flushing(mut self) -> Self {
        self.flush_every = Some(32);
        self
    }

    /// Runs it against an NBD export for some seconds. Gives the writes that were answered, for each
    /// second.
    pub(crate) fn run(&self, uri: &str, size_bytes: u64, seconds: u32) -> Result<Outcome> {
        let order = match self.order {
            Order::Random => "randwrite",
            Order::Sequential => "write",
        };
        let mut command = Command::new("fio");
        command
            .args(["--name=guest", "--ioengine=nbd", "--output-format=json"])
            .args(["--time_based", "--norandommap", "--randrepeat=0"])
            .arg(format!("--uri={uri}"))
            .arg(format!("--rw={order}"))
            .arg(format!("--bs={}", self.request_bytes))
            .arg(format!("--iodepth={}", self.depth))
            .arg(format!("--size={size_bytes}"))
            .arg(format!("--runtime={seconds}"));
        if let Some(writes) = self.flush_every {
            command.arg(format!("--fsync={writes}"));
        }
        let output = tools::run(&mut command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        // fio talks before its JSON, too.
        let json = text.find('{').map_or("", |from| &text[from..]);
        let report: Value = serde_json::from_str(json).context("parse fio's report")?;
        Outcome::of(&report).context("understand fio's report")
    }
}

/// What came of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) writes: f64,
    pub(crate) writes_per_second: f64,
}

impl Outcome {
    fn of(report: &Value) -> Option<Self> {
        let write = report.get("jobs")?.get(0)?.get("write")?;
        Some(Self {
            writes: write.get("total_ios")?.as_f64()?,
            writes_per_second: write.get("iops")?.as_f64()?,
        })
    }
}
