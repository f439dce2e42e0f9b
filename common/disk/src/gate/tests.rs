use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::error::ErrorKind;
use crate::image::ExtentKind;

/// A core of 8 sectors that tells its runs sector by sector.
#[derive(Default)]
struct Core {
    read_only: bool,
    poison: Poison,
    flushed: AtomicBool,
    shut: AtomicBool,
}

impl Guarded for Core {
    fn name(&self) -> &str {
        "core"
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn poison(&self) -> &Poison {
        &self.poison
    }

    fn size_bytes(&self) -> u64 {
        4096
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: 4096,
            logical_sector_bytes: 512,
            physical_sector_bytes: 512,
            block_bytes: 0,
            read_only: self.read_only,
        }
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        Ok(Identity {
            file_bytes: 4096,
            ..Identity::default()
        })
    }

    fn runs(&self, offset: u64, _: u64) -> Result<Vec<Run>, DiskError> {
        let kind = if (1024..3072).contains(&offset) {
            ExtentKind::Hole
        } else {
            ExtentKind::Data
        };
        let level = u32::from(offset >= 3584);
        Ok(vec![Run {
            offset,
            length: 512,
            kind,
            level,
        }])
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.flushed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn shut(&self) -> Result<(), DiskError> {
        self.shut.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn flag(gate: &Gate<Core>, of: impl FnOnce(&Core) -> &AtomicBool) -> bool {
    gate.with(|core| Ok(of(core).load(Ordering::Relaxed)))
        .unwrap()
}

#[test]
fn runs_that_are_alike_are_told_as_one() {
    let gate = Gate::new(Core::default());
    let mut told = Vec::new();
    gate.extents(512, 3584, &mut |run| {
        told.push((run.offset, run.length, run.kind, run.level));
        // Invariant 2: the visitor may take the gate alone.
        gate.alone(|_| Ok(())).unwrap();
        true
    })
    .unwrap();
    assert_eq!(
        told,
        [
            (512, 512, ExtentKind::Data, 0),
            (1024, 2048, ExtentKind::Hole, 0),
            (3072, 512, ExtentKind::Data, 0),
            (3584, 512, ExtentKind::Data, 1),
        ]
    );
    let mut count = 0;
    gate.extents(0, 4096, &mut |_| {
        count += 1;
        false
    })
    .unwrap();
    assert_eq!(count, 1, "the visitor had enough");
}

#[test]
fn only_requests_within_the_disk_reach_the_core() {
    let gate = Gate::new(Core::default());
    gate.read(0, 4096, |_| Ok(())).unwrap();
    for (offset, length) in [
        (0, 4608),
        (4096, 512),
        (1, 512),
        (0, 511),
        (u64::MAX - 511, 512),
    ] {
        let reached = |_: &Core| -> Result<(), DiskError> { panic!("the core was reached") };
        let read = gate.read(offset, length, reached).unwrap_err();
        let change = gate.change(offset, length as u64, reached).unwrap_err();
        let list = gate.extents(offset, length as u64, &mut |_| panic!("told"));
        for error in [read, change, list.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{length} at {offset}");
        }
    }
}

#[test]
fn a_core_that_is_read_only_is_neither_changed_nor_flushed() {
    let gate = Gate::new(Core {
        read_only: true,
        ..Core::default()
    });
    let change = gate.change(0, 512, |_| Ok(())).unwrap_err();
    assert_eq!(change.kind(), ErrorKind::Invalid);
    let grown = gate.alone(|_| Ok(())).unwrap_err();
    assert_eq!(grown.kind(), ErrorKind::Invalid);
    gate.flush().unwrap();
    gate.settled_identity().unwrap();
    assert!(!flag(&gate, |core| &core.flushed));
    assert!(!flag(&gate, |core| &core.shut));
    gate.close().unwrap();
}

#[test]
fn a_closed_gate_tells_what_was_left_and_nothing_else() {
    let gate = Gate::new(Core::default());
    gate.flush().unwrap();
    assert!(flag(&gate, |core| &core.flushed));
    gate.settled_identity().unwrap();
    assert!(flag(&gate, |core| &core.shut));
    assert!(gate.is_quick(|_| true));
    gate.close().unwrap();
    assert_eq!(gate.geometry().size_bytes, 4096);
    assert_eq!(gate.identity().unwrap().file_bytes, 4096);
    assert_eq!(gate.settled_identity().unwrap().file_bytes, 4096);
    assert!(!gate.is_quick(|_| true));
    let refused = [
        gate.read(0, 512, |_| Ok(())),
        gate.change(0, 512, |_| Ok(())),
        gate.alone(|_| Ok(())),
        gate.extents(0, 512, &mut |_| true),
        gate.flush(),
        gate.close(),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Closed);
    }
}

#[test]
fn nothing_reaches_a_poisoned_core() {
    let gate = Gate::new(Core::default());
    gate.with(|core| {
        core.poison.remember("sync".to_owned());
        Ok(())
    })
    .unwrap();
    let refused = [
        gate.read(0, 512, |_| Ok(())),
        gate.change(0, 512, |_| Ok(())),
        gate.alone(|_| Ok(())),
        gate.extents(0, 512, &mut |_| true),
        gate.flush(),
        gate.settled_identity().map(|_| ()),
        gate.close(),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Poisoned);
    }
    gate.identity().unwrap();
}
