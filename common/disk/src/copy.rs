//! Copying one image to another, whatever their formats.
//!
//! Receives a source, and a target of the same size that reads as zeros; several threads read the source's data and
//! write what is not zero. Holes of the source are not read, and zeros inside its data are not written, so that the
//! target takes space for what it holds only.
//!
//! Does not do: flushing the target (the caller closes it once all is there); making it (see [`create`](crate::create)).

use std::ops::Range;

use crate::error::DiskError;
use crate::image::Image;
use crate::walk::{
    GRAIN_BYTES, Go, PIECE_BYTES, Progress, Runs, Stretch, is_zero, piece_length, share_out,
};

/// A copy that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source cannot be read.
    #[error("read the source")]
    Read(#[source] DiskError),
    /// The target cannot be written.
    #[error("write the target")]
    Write(#[source] DiskError),
    /// The target has another size.
    #[error("the source has {from_bytes} bytes, the target {to_bytes}")]
    Sizes {
        /// Size of the source.
        from_bytes: u64,
        /// Size of the target.
        to_bytes: u64,
    },
    /// [`Progress::stop`] was called.
    #[error("stopped before the end")]
    Stopped,
}

/// What a copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Bytes of the source that were not known to be zeros, and were read.
    pub read_bytes: u64,
    /// Bytes that were not zeros, and were written.
    pub written_bytes: u64,
}

/// Copies the content of `from` to `to`, which must read as zeros. It is durable once `to` is flushed or closed.
///
/// # Errors
/// [`CopyError`]; some of the content may be in the target then.
pub fn copy(from: &dyn Image, to: &dyn Image, progress: &Progress) -> Result<Copied, CopyError> {
    let (from_bytes, to_bytes) = (from.geometry().size_bytes, to.geometry().size_bytes);
    if from_bytes != to_bytes {
        return Err(CopyError::Sizes {
            from_bytes,
            to_bytes,
        });
    }
    let mut runs = Runs::new(from, from_bytes);
    let next = || next_piece(&mut runs, progress);
    let workers = share_out(next, Worker::new, |worker, piece| {
        worker.copy(from, to, piece)?;
        progress.add(piece.length);
        Ok(Go::On)
    })?;
    let mut all = Copied::default();
    for worker in workers {
        all.read_bytes += worker.copied.read_bytes;
        all.written_bytes += worker.copied.written_bytes;
    }
    Ok(all)
}

/// The next piece of data; holes before it are done.
fn next_piece(runs: &mut Runs<'_>, progress: &Progress) -> Result<Option<Stretch>, CopyError> {
    loop {
        if progress.is_stopped() {
            return Err(CopyError::Stopped);
        }
        let Some(run) = runs.peek().map_err(CopyError::Read)? else {
            return Ok(None);
        };
        let length = if run.is_data {
            piece_length(run.offset)
        } else {
            run.length
        };
        let piece = runs.take(length).map_err(CopyError::Read)?;
        if run.is_data {
            return Ok(piece);
        }
        progress.add(run.length);
    }
}

struct Worker {
    buf: Vec<u8>,
    copied: Copied,
}

impl Worker {
    fn new() -> Self {
        let bytes = usize::try_from(PIECE_BYTES).expect("a piece fits memory");
        Self {
            buf: vec![0; bytes],
            copied: Copied::default(),
        }
    }

    fn copy(&mut self, from: &dyn Image, to: &dyn Image, piece: Stretch) -> Result<(), CopyError> {
        let length = usize::try_from(piece.length).expect("a piece fits memory");
        let buf = &mut self.buf[..length];
        from.read_at(buf, piece.offset).map_err(CopyError::Read)?;
        self.copied.read_bytes += piece.length;
        for range in stretches(buf) {
            let part = &buf[range.clone()];
            to.write_at(part, piece.offset + range.start as u64, false)
                .map_err(CopyError::Write)?;
            self.copied.written_bytes += part.len() as u64;
        }
        Ok(())
    }
}

/// The parts of `buf` that are not zeros, in whole grains.
pub(crate) fn stretches(buf: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let grain = |at: usize| at..(at + GRAIN_BYTES).min(buf.len());
        while at < buf.len() && is_zero(&buf[grain(at)]) {
            at = grain(at).end;
        }
        let start = at;
        while at < buf.len() && !is_zero(&buf[grain(at)]) {
            at = grain(at).end;
        }
        (start < at).then_some(start..at)
    })
}

#[cfg(test)]
mod tests;
