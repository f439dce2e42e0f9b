//! The file that says when this agent last lived: what lets one that died and came back in the same
//! boot reopen its exports without asking the other site.
//!
//! Which groups were open is in their role records; this file only dates the death. Never synced: within one
//! boot the page cache survives the process, and another boot must not believe the file. A torn
//! or foreign file reads as "not known".

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::env::Env;

const MAGIC: &str = "sitepair-alive 1";

/// Time between two writes: how much longer than it was a death may seem.
pub(super) const WRITE_EVERY: Duration = Duration::from_secs(2);

/// Writes and reads the file.
#[derive(Debug)]
pub(super) struct AliveFile {
    path: PathBuf,
}

impl AliveFile {
    /// The file in `state_dir`.
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("alive"),
        }
    }

    /// Says that the agent lives now.
    pub(super) fn write(&self, env: &dyn Env) -> std::io::Result<()> {
        let text = format!("{MAGIC}\n{}\n{}\nend\n", boot(env), env.boot_millis());
        let aside = self.path.with_extension("new");
        std::fs::write(&aside, text)?;
        std::fs::rename(&aside, &self.path)
    }

    /// Milliseconds since the last word, if that was in this boot.
    pub(super) fn dead_for_ms(&self, env: &dyn Env) -> Option<u64> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let mut lines = text.lines();
        if lines.next()? != MAGIC || lines.next()? != boot(env) {
            return None;
        }
        let then: u64 = lines.next()?.parse().ok()?;
        (lines.next()? == "end").then_some(())?;
        env.boot_millis().checked_sub(then)
    }
}

fn boot(env: &dyn Env) -> String {
    uuid::Uuid::from_bytes(env.boot_id()).to_string()
}

#[cfg(test)]
mod tests {
    use sitepair_model::ids::UnixMillis;

    use super::*;

    struct Boot(u8, u64);
    impl Env for Boot {
        fn now(&self) -> UnixMillis {
            UnixMillis(0)
        }
        fn boot_millis(&self) -> u64 {
            self.1
        }
        fn boot_id(&self) -> [u8; 16] {
            [self.0; 16]
        }
        fn random_id(&self) -> [u8; 16] {
            [9; 16]
        }
        fn free_bytes(&self, _: &Path) -> std::io::Result<u64> {
            Ok(u64::MAX)
        }
    }

    #[test]
    fn only_the_same_boot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = AliveFile::new(dir.path());
        assert_eq!(file.dead_for_ms(&Boot(1, 100)), None);
        file.write(&Boot(1, 100)).unwrap();
        assert_eq!(file.dead_for_ms(&Boot(1, 350)), Some(250));
        assert_eq!(file.dead_for_ms(&Boot(2, 350)), None);
        assert_eq!(file.dead_for_ms(&Boot(1, 50)), None);
        let text = std::fs::read_to_string(dir.path().join("alive")).unwrap();
        std::fs::write(dir.path().join("alive"), &text[..text.len() - 4]).unwrap();
        assert_eq!(
            file.dead_for_ms(&Boot(1, 350)),
            None,
            "a torn file says nothing"
        );
    }
}
