//! What work costs: processor time and memory, as the kernel counts them.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};

use crate::table::{median, real};

/// The kernel's unit in `/proc/PID/stat`; 100 on every Linux that we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time of a process so far, in seconds.
pub(crate) fn process(id: u32) -> Result<f64> {
    Ok(stat(&format!("/proc/{id}/stat"))?.own)
}

/// Processor time of this process so far, in seconds.
pub(crate) fn own() -> f64 {
    seconds(ClockId::ProcessCPUTime)
}

/// Processor time of the calling thread so far, in seconds.
pub(crate) fn thread() -> f64 {
    seconds(ClockId::ThreadCPUTime)
}

/// Processor time of children that have ended, in seconds.
pub(crate) fn children() -> Result<f64> {
    Ok(stat("/proc/self/stat")?.children)
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    let whole = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(whole, nanos).as_secs_f64()
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident_bytes: u64,
    pub(crate) threads: u64,
}

/// What a process holds now.
pub(crate) fn memory(id: u32) -> Result<Memory> {
    let path = format!("/proc/{id}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number
            .and_then(|number| number.parse::<u64>().ok())
            .with_context(|| format!("{name} is not in {path}"))
    };
    Ok(Memory {
        resident_bytes: field("VmRSS:")? * 1024,
        threads: field("Threads:")?,
    })
}

struct Stat {
    own: f64,
    children: f64,
}

fn stat(path: &str) -> Result<Stat> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    parse(&text).with_context(|| format!("understand {path}"))
}

fn parse(text: &str) -> Option<Stat> {
    // The name in parentheses may hold anything; the first field behind it is the third.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok().map(real);
    Some(Stat {
        own: (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND,
        children: (ticks(16)? + ticks(17)?) / TICKS_PER_SECOND,
    })
}

/// One copy of an image from one program to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copied {
    /// From the first byte to the last one durable.
    pub(crate) seconds: f64,
    /// Processor time of the reading side in seconds.
    pub(crate) sender: f64,
    /// Processor time of the writing side in seconds.
    pub(crate) receiver: f64,
}

impl Copied {
    /// A table's row: name, MiB a second, and processor seconds for each GiB.
    pub(crate) fn cells(name: &str, runs: &[Self], bytes: u64) -> Vec<String> {
        let mib = real(bytes) / 1_048_576.0;
        let middle = |value: fn(&Self) -> f64| median(runs.iter().map(value));
        vec![
            name.to_owned(),
            format!("{:.0}", mib / middle(|run| run.seconds)),
            format!("{:.2}", middle(|run| run.sender) * 1024.0 / mib),
            format!("{:.2}", middle(|run| run.receiver) * 1024.0 / mib),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_is_passed_over() {
        let stat = parse("7 (a) b (c) R 1 2 3 4 5 6 7 8 9 10 250 50 100 0 20 0 1").unwrap();
        assert_eq!((stat.own, stat.children), (3.0, 1.0));
    }

    #[test]
    fn work_costs_time() {
        let before = (own(), thread());
        while thread() - before.1 < 0.02 {}
        assert!(own() > before.0);
        assert!(process(std::process::id()).unwrap() > 0.0);
        assert!(memory(std::process::id()).unwrap().threads > 0);
    }
}
