//! The image that is replicated: half of it data like a real disk's, half holes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use sitepair_tests::data;

/// Data and holes alternate in stretches of this.
const STRETCH_BYTES: u64 = 32 << 20;
const STEP_BYTES: usize = 1 << 20;
const SEED: u64 = 42;

/// Makes a raw image of `size_bytes`, whose every other stretch is mixed data. It is durable, so
/// that its writing does not disturb what follows. Returns the bytes of data.
pub(crate) fn create(path: &Path, size_bytes: u64) -> Result<u64> {
    let file = File::create_new(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(size_bytes).context("size the image")?;
    let starts: Vec<u64> = (0..size_bytes)
        .step_by(usize::try_from(2 * STRETCH_BYTES)?)
        .collect();
    let stretch = |start: u64| (size_bytes - start).min(STRETCH_BYTES);
    let (left, right) = starts.split_at(starts.len() / 2);
    thread::scope(|scope| {
        let halves = [left, right].map(|half| {
            let file = &file;
            scope.spawn(move || {
                half.iter()
                    .try_for_each(|start| fill(file, *start, stretch(*start)))
            })
        });
        halves.into_iter().try_for_each(|half| {
            half.join()
                .map_err(|_| anyhow!("a thread that filled the image panicked"))?
        })
    })?;
    file.sync_all().context("sync the image")?;
    Ok(starts.into_iter().map(stretch).sum())
}

fn fill(file: &File, start: u64, length: u64) -> Result<()> {
    let mut buf = vec![0; STEP_BYTES];
    for offset in (start..start + length).step_by(STEP_BYTES) {
        let n = buf.len().min(usize::try_from(start + length - offset)?);
        data::fill_mixed(SEED, offset, &mut buf[..n]);
        file.write_all_at(&buf[..n], offset)
            .context("fill the image")?;
    }
    Ok(())
}
