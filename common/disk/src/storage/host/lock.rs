//! Locks that QEMU understands.
//!
//! QEMU tells other processes what it does with an image through locks on single bytes of the file
//! (the content of these bytes does not matter, nor whether they exist):
//!
//! ```text
//! byte 100 + n   read-locked while its holder uses permission n
//! byte 200 + n   read-locked while its holder does not share permission n
//! n = 0 consistent read, 1 write, 2 write unchanged, 3 resize
//! ```
//!
//! Whoever comes first takes his bytes, then looks whether anyone else (another open file description,
//! be it in the same process) holds the opposite ones. Two that come at the same instant may both give
//! up; never do both go on, because each takes before it looks.
//!
//! Does not do: waiting. The locks are on the open file description: they end with its last handle,
//! also when the process is killed. A copy of the handle in a child process is a handle, so whoever is done
//! gives them up by name.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::storage::LockKind;

/// First byte of the permissions in use.
const USED_BASE: i64 = 100;
/// First byte of the permissions that are not shared.
const UNSHARED_BASE: i64 = 200;

const CONSISTENT_READ: u8 = 0x01;
const WRITE: u8 = 0x02;
const WRITE_UNCHANGED: u8 = 0x04;
const RESIZE: u8 = 0x08;
const ALL: u8 = CONSISTENT_READ | WRITE | WRITE_UNCHANGED | RESIZE;

/// Which permissions a holder uses, and which it denies to all others; one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    used: u8,
    unshared: u8,
}

impl Claim {
    const NONE: Self = Self {
        used: 0,
        unshared: 0,
    };

    fn of(kind: LockKind) -> Self {
        match kind {
            LockKind::Shared => Self {
                used: CONSISTENT_READ,
                unshared: WRITE | RESIZE,
            },
            LockKind::Exclusive => Self {
                used: ALL,
                unshared: ALL,
            },
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            used: self.used | other.used,
            unshared: self.unshared | other.unshared,
        }
    }

    fn without(self, other: Self) -> Self {
        Self {
            used: self.used & !other.used,
            unshared: self.unshared & !other.unshared,
        }
    }
}

/// Changes the claim on `file` from `held` to `wanted`. When another holder is in the way, `held` stays.
pub(super) fn replace(file: &File, held: Option<LockKind>, wanted: LockKind) -> io::Result<()> {
    let held = held.map_or(Claim::NONE, Claim::of);
    let wanted = Claim::of(wanted);
    let taken = take(file, wanted.without(held)).and_then(|()| look(file, wanted));
    match taken {
        Ok(()) => release(file, held.without(wanted)),
        Err(e) => {
            // Best effort: the caller drops the file on a refusal, and that releases everything.
            let _ = release(file, wanted.or(held).without(held));
            Err(e)
        }
    }
}

/// Ends the claim, whoever else has a handle of the same open file. Best effort: the handle is closed next.
pub(super) fn give_up(file: &File, held: LockKind) {
    let _ = release(file, Claim::of(held));
}

fn take(file: &File, claim: Claim) -> io::Result<()> {
    for byte in bytes(claim.used, USED_BASE).chain(bytes(claim.unshared, UNSHARED_BASE)) {
        apply(file, byte, libc::F_RDLCK)?;
    }
    Ok(())
}

fn release(file: &File, claim: Claim) -> io::Result<()> {
    for byte in bytes(claim.used, USED_BASE).chain(bytes(claim.unshared, UNSHARED_BASE)) {
        apply(file, byte, libc::F_UNLCK)?;
    }
    Ok(())
}

/// Fails when anyone else uses what we deny, or denies what we use.
fn look(file: &File, claim: Claim) -> io::Result<()> {
    for byte in bytes(claim.unshared, USED_BASE).chain(bytes(claim.used, UNSHARED_BASE)) {
        let mut probe = flock(byte, libc::F_WRLCK)?;
        interrupted_again(|| fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)))?;
        if i32::from(probe.l_type) != libc::F_UNLCK {
            return Err(io::Error::from(io::ErrorKind::WouldBlock));
        }
    }
    Ok(())
}

fn apply(file: &File, byte: i64, kind: i32) -> io::Result<()> {
    let range = flock(byte, kind)?;
    interrupted_again(|| fcntl(file, FcntlArg::F_OFD_SETLK(&range)))
}

fn interrupted_again(mut call: impl FnMut() -> nix::Result<i32>) -> io::Result<()> {
    loop {
        match call() {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            // A foreign write lock on one of the bytes; POSIX allows either number.
            Err(Errno::EAGAIN | Errno::EACCES) => {
                return Err(io::Error::from(io::ErrorKind::WouldBlock));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn bytes(permissions: u8, base: i64) -> impl Iterator<Item = i64> {
    (0..8)
        .filter(move |n| permissions & (1 << n) != 0)
        .map(move |n| base + n)
}

fn flock(byte: i64, kind: i32) -> io::Result<libc::flock> {
    let narrow = |value: i32| i16::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    Ok(libc::flock {
        l_type: narrow(kind)?,
        l_whence: narrow(libc::SEEK_SET)?,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    })
}
