//! What the demonstration says: steps, notes below them, and a line of progress that is drawn over
//! on a terminal and printed once a second elsewhere.
//!
//! Also knows whether the person has had enough: any output ends in an error then.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::cannot_write;

/// Time between two lines of progress where lines cannot be drawn over.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// Time between two looks at the stop signal.
const STOP_LOOK: Duration = Duration::from_millis(50);

/// Cells of a bar.
const BAR_CELLS: u64 = 24;

/// Where the demonstration speaks.
pub struct Console<'a> {
    out: &'a mut dyn Write,
    is_terminal: bool,
    started: Instant,
    stop: Arc<AtomicBool>,
    drawn: Option<Instant>,
}

impl<'a> Console<'a> {
    /// Speaks to `out`; lines are drawn over when it is a terminal. `stop` ends the demonstration.
    pub fn new(out: &'a mut dyn Write, is_terminal: bool, stop: Arc<AtomicBool>) -> Self {
        Self {
            out,
            is_terminal,
            started: Instant::now(),
            stop,
            drawn: None,
        }
    }

    /// Begins a step.
    ///
    /// # Errors
    /// When nobody can read it, or the person has had enough.
    pub fn step(&mut self, text: &str) -> Result<()> {
        let at = self.started.elapsed().as_secs_f64();
        self.line(&format!("[{at:5.1} s] {text}"))
    }

    /// Says something about the step.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn note(&mut self, text: &str) -> Result<()> {
        self.line(&format!("          {text}"))
    }

    /// Says how far the step is.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn progress(&mut self, text: &str) -> Result<()> {
        if self.is_terminal {
            self.check()?;
            self.drawn = Some(Instant::now());
            write!(self.out, "\r\x1b[K          {text}")
                .and_then(|()| self.out.flush())
                .map_err(cannot_write)
        } else if self.drawn.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) {
            self.note(text)?;
            self.drawn = Some(Instant::now());
            Ok(())
        } else {
            self.check()
        }
    }

    /// The step needs no more progress.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn end_progress(&mut self) -> Result<()> {
        if self.drawn.take().is_some() && self.is_terminal {
            self.raw("\n")?;
        }
        self.check()
    }

    /// Prints text as it is.
    ///
    /// # Errors
    /// When nobody can read it.
    pub fn raw(&mut self, text: &str) -> Result<()> {
        self.out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(cannot_write)
    }

    /// Waits until the person has had enough.
    pub fn wait_for_stop(&self) {
        while !self.stop.load(Ordering::Acquire) {
            thread::sleep(STOP_LOOK);
        }
    }

    fn line(&mut self, text: &str) -> Result<()> {
        self.check()?;
        self.raw(&format!("{text}\n"))
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.stop.load(Ordering::Acquire), "interrupted");
        Ok(())
    }
}

/// A bar that is full when `done` reaches `total`.
pub(super) fn bar(done: u64, total: u64) -> String {
    let full = (done.min(total) * BAR_CELLS)
        .checked_div(total)
        .unwrap_or(0);
    (0..BAR_CELLS)
        .map(|cell| if cell < full { '█' } else { '░' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_from_nothing_to_all() {
        let full = |done, total| bar(done, total).chars().filter(|&c| c == '█').count();
        assert_eq!(
            [full(0, 0), full(0, 9), full(3, 6), full(6, 6), full(7, 6)],
            [0, 0, 12, 24, 24]
        );
    }

    #[test]
    fn a_stopped_console_ends_the_story() {
        let stop = Arc::new(AtomicBool::new(false));
        let mut out = Vec::new();
        let mut console = Console::new(&mut out, false, Arc::clone(&stop));
        console.step("one").unwrap();
        stop.store(true, Ordering::Release);
        assert!(console.step("two").is_err());
        assert!(console.progress("three").is_err());
        let said = String::from_utf8(out).unwrap();
        assert!(
            said.contains("one") && !said.contains("two") && !said.contains("three"),
            "{said}"
        );
    }
}
