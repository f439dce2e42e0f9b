//! An open file of the fake storage.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::inode::Change;
use super::world::{InodeId, Verdict, World};
use super::{FaultOn, What, go};
use crate::storage::{BlockFile, FileExtent, LockKind};

pub(super) struct FakeFile {
    pub(super) world: Arc<Mutex<World>>,
    pub(super) id: InodeId,
    pub(super) handle: u64,
    pub(super) writable: bool,
}

impl FakeFile {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers a change to this file. Poison comes before faults.
    fn begin(&self, world: &mut World, what: What) -> io::Result<Verdict> {
        if !self.writable {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        self.begin_sync(world, what)
    }

    /// As `begin`, for a file that may be open for reading only.
    fn begin_sync(&self, world: &mut World, what: What) -> io::Result<Verdict> {
        world.check_alive()?;
        if world.inodes[&self.id].poisoned {
            return Err(io::Error::other("an earlier sync failed"));
        }
        let path = world.name_path(self.id);
        world.begin(&path, what)
    }

    fn change(&self, what: What, change: Change) -> io::Result<()> {
        let mut world = self.world();
        go(self.begin(&mut world, what)?)?;
        world.change(self.id, change)
    }

    fn write(&self, buf: &[u8], offset: u64, durable: bool) -> io::Result<()> {
        let mut world = self.world();
        let length = buf.len() as u64;
        let verdict = self.begin(
            &mut world,
            What::Write {
                offset,
                length,
                durable,
            },
        )?;
        let counters = &mut world.touched(self.id).counters;
        counters.writes += 1;
        counters.bytes_written += length;
        counters.syncs += u64::from(durable);
        let change = Change::Write {
            offset,
            data: buf.to_vec(),
        };
        world.check_room(self.id, &change)?;
        if let Verdict::Fail(error) = verdict {
            let half = buf.len() / 2 / 512 * 512;
            world.change(
                self.id,
                Change::Write {
                    offset,
                    data: buf[..half].to_vec(),
                },
            )?;
            if durable {
                world.fail_sync(self.id);
            }
            return Err(error);
        }
        if durable {
            world.touched(self.id).write_durable(buf, offset);
            return Ok(());
        }
        world.change(self.id, change)
    }
}

impl Drop for FakeFile {
    fn drop(&mut self) {
        let handle = self.handle;
        self.world().close(handle);
    }
}

impl BlockFile for FakeFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut world = self.world();
        world.check_alive()?;
        // As the host does: no bytes are wherever one looks.
        if buf.is_empty() {
            return Ok(());
        }
        let path = world.name_path(self.id);
        if let Some(error) = world.fault(&path, FaultOn::Read) {
            return Err(error);
        }
        let end = offset
            .checked_add(buf.len() as u64)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        if world
            .bad_reads
            .iter()
            .any(|(bad, range)| *bad == path && range.start < end && offset < range.end)
        {
            return Err(rustix::io::Errno::IO.into());
        }
        let inode = world
            .inodes
            .get_mut(&self.id)
            .expect("open files stay reachable");
        inode.counters.reads += 1;
        if end > inode.current.length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        inode.current.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write(buf, offset, false)
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write(buf, offset, true)
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.world();
        let verdict = self.begin_sync(&mut world, What::Sync)?;
        let inode = world
            .inodes
            .get_mut(&self.id)
            .expect("open files stay reachable");
        inode.counters.syncs += 1;
        match verdict {
            Verdict::Go => {
                inode.sync();
                Ok(())
            }
            Verdict::Fail(error) => {
                world.fail_sync(self.id);
                Err(error)
            }
        }
    }

    fn length(&self) -> io::Result<u64> {
        let world = self.world();
        world.check_alive()?;
        Ok(world.inodes[&self.id].current.length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.change(What::SetLength { length }, Change::SetLength(length))
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(
            What::PunchHole { offset, length },
            Change::Punch { offset, length },
        )
    }

    fn zero_range(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(
            What::ZeroRange { offset, length },
            Change::Zero { offset, length },
        )
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(
            What::Allocate { offset, length },
            Change::Allocate { offset, length },
        )
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(u64, u64, FileExtent) -> bool,
    ) -> io::Result<()> {
        let content = {
            let world = self.world();
            world.check_alive()?;
            // A copy, so that the visitor may call us.
            world.inodes[&self.id].current.clone()
        };
        content.extents(offset, length, visit);
        Ok(())
    }

    fn modified_ns(&self) -> io::Result<i128> {
        let world = self.world();
        world.check_alive()?;
        Ok(1_000_000 + i128::from(world.inodes[&self.id].modified))
    }

    fn lock(&self, kind: LockKind) -> io::Result<()> {
        let mut world = self.world();
        world.check_alive()?;
        world.lock(self.id, self.handle, kind)
    }
}
