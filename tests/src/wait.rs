//! Waiting for something to become true, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Pause between two looks. Short, because most things that are waited for take milliseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Calls `probe` until it gives a value, and returns it.
///
/// # Errors
/// When `probe` fails, or when `limit` passes; the message names `what` was waited for.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe().with_context(|| format!("wait until {what}"))? {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("waited {} s in vain until {what}", limit.as_secs());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_the_wait() {
        let mut left = 3;
        let seen = until("three looks", Duration::from_secs(5), || {
            left -= 1;
            Ok((left == 0).then_some("done"))
        });
        assert_eq!(seen.unwrap(), "done");
    }

    #[test]
    fn the_deadline_names_what_was_waited_for() {
        let failed = until::<()>("pigs fly", Duration::ZERO, || Ok(None)).unwrap_err();
        assert!(failed.to_string().contains("pigs fly"), "{failed}");
    }
}
