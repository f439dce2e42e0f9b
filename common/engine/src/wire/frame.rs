//! Frames of bulk data, to and from the wire.
//!
//! Checks what can be checked without knowing the disk: sizes, counts, order, and that the payload is
//! as long as its extents say. Does not do: the payload's hash and the disk's bounds; the replica
//! checks both before it writes.

use sitepair_model::ids::{Digest, DiskId};
use sitepair_model::peer::{FrameExtent, FrameExtentKind};
use sitepair_proto::convert::{DISK_BYTES_MAX, fixed, to_bytes};
use sitepair_proto::{Invalid, v1};

use crate::endpoint::{DataFrame, FRAME_EXTENTS_MAX, FRAME_PAYLOAD_MAX};

pub(super) fn to_wire(frame: DataFrame) -> v1::DataFrame {
    v1::DataFrame {
        disk: to_bytes(frame.disk.as_bytes()),
        extents: frame.extents.into_iter().map(Into::into).collect(),
        hash: to_bytes(frame.hash.as_bytes()),
        payload: frame.payload,
    }
}

pub(super) fn from_wire(frame: v1::DataFrame) -> Result<DataFrame, Invalid> {
    let too_many = |field, found, max| Err(Invalid::TooMany { field, found, max });
    if frame.extents.is_empty() {
        return Err(Invalid::Missing { field: "extents" });
    }
    if frame.extents.len() > FRAME_EXTENTS_MAX {
        return too_many("extents", frame.extents.len(), FRAME_EXTENTS_MAX);
    }
    if frame.payload.len() > FRAME_PAYLOAD_MAX {
        return too_many("payload", frame.payload.len(), FRAME_PAYLOAD_MAX);
    }
    let extents: Vec<FrameExtent> = frame.extents.into_iter().map(Into::into).collect();
    check_extents(&extents, frame.payload.len())?;
    Ok(DataFrame {
        disk: DiskId::from_bytes(fixed("disk", &frame.disk)?),
        extents,
        hash: Digest::from_bytes(fixed("hash", &frame.hash)?),
        payload: frame.payload,
    })
}

fn check_extents(extents: &[FrameExtent], payload_bytes: usize) -> Result<(), Invalid> {
    let mut end = 0;
    let mut data_bytes = 0_u64;
    for extent in extents {
        if extent.offset < end {
            return Err(Invalid::Value {
                field: "offset",
                found: extent.offset,
            });
        }
        end = extent
            .offset
            .checked_add(extent.length)
            .filter(|end| extent.length > 0 && *end <= DISK_BYTES_MAX)
            .ok_or(Invalid::Value {
                field: "length",
                found: extent.length,
            })?;
        match extent.kind {
            // Cannot overflow: the extents do not overlap and end below the largest disk.
            FrameExtentKind::Data => data_bytes += extent.length,
            FrameExtentKind::Zero => {}
        }
    }
    if u64::try_from(payload_bytes).is_ok_and(|bytes| bytes == data_bytes) {
        Ok(())
    } else {
        Err(Invalid::Value {
            field: "payload",
            found: data_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn extent(offset: u64, length: u64, zero: bool) -> v1::FrameExtent {
        v1::FrameExtent {
            offset,
            length,
            zero,
        }
    }

    fn frame(extents: Vec<v1::FrameExtent>, payload: usize) -> v1::DataFrame {
        v1::DataFrame {
            disk: vec![1; 16].into(),
            extents,
            hash: vec![2; 32].into(),
            payload: Bytes::from(vec![3; payload]),
        }
    }

    #[test]
    fn frames_that_fit_together_are_taken() {
        let wire = frame(
            vec![extent(0, 4096, false), extent(8192, 1 << 40, true)],
            4096,
        );
        let taken = from_wire(wire.clone()).unwrap();
        assert_eq!(to_wire(taken), wire);
    }

    #[test]
    fn frames_past_a_limit_are_refused() {
        let many = (0..)
            .map(|i| extent(i * 8192, 4096, true))
            .take(FRAME_EXTENTS_MAX + 1);
        let big = u64::try_from(FRAME_PAYLOAD_MAX + 1).unwrap();
        for (why, bad) in [
            ("no extents", frame(vec![], 0)),
            ("too many extents", frame(many.collect(), 0)),
            (
                "payload too long",
                frame(vec![extent(0, big, false)], FRAME_PAYLOAD_MAX + 1),
            ),
            ("empty extent", frame(vec![extent(0, 0, true)], 0)),
            (
                "overlap",
                frame(vec![extent(0, 8192, true), extent(4096, 4096, true)], 0),
            ),
            (
                "descending",
                frame(vec![extent(8192, 4096, true), extent(0, 4096, true)], 0),
            ),
            ("overflow", frame(vec![extent(u64::MAX, 2, true)], 0)),
            (
                "beyond any disk",
                frame(vec![extent(DISK_BYTES_MAX, 1, true)], 0),
            ),
            ("payload missing", frame(vec![extent(0, 4096, false)], 0)),
            (
                "payload without extent",
                frame(vec![extent(0, 4096, true)], 1),
            ),
        ] {
            assert!(from_wire(bad).is_err(), "{why}");
        }
        let mut wire = frame(vec![extent(0, 1, true)], 0);
        wire.hash = Bytes::new();
        assert!(from_wire(wire).is_err(), "no hash");
    }
}
