//! Checks of a data frame before anything of it is written.
//!
//! Does not do: digests of transfers; writing.

use sitepair_model::extent::{BLOCK_BYTES, Extent};
use sitepair_model::ids::Digest;
use sitepair_model::peer::FrameExtentKind;

use super::ReplicaError;
use crate::endpoint::{DataFrame, FRAME_EXTENTS_MAX, FRAME_PAYLOAD_MAX};

/// Checks a frame for a disk of `size_bytes`: its extents, and that the payload is what was hashed.
pub(super) fn check(frame: &DataFrame, size_bytes: u64) -> Result<(), ReplicaError> {
    let bad = |why: String| ReplicaError::BadFrame {
        disk: frame.disk,
        why,
    };
    if frame.extents.is_empty() || frame.extents.len() > FRAME_EXTENTS_MAX {
        return Err(bad(format!("{} extents", frame.extents.len())));
    }
    if frame.payload.len() > FRAME_PAYLOAD_MAX {
        return Err(bad(format!("a payload of {} bytes", frame.payload.len())));
    }
    let (mut end_before, mut data_bytes) = (0, 0_u64);
    for e in &frame.extents {
        let extent = Extent::new(e.offset, e.length);
        let end = extent
            .checked_end()
            .filter(|end| *end <= size_bytes)
            .ok_or_else(|| {
                bad(format!(
                    "{} bytes at {} of a disk of {size_bytes}",
                    e.length, e.offset
                ))
            })?;
        let aligned = e.offset.is_multiple_of(BLOCK_BYTES)
            && (end.is_multiple_of(BLOCK_BYTES) || end == size_bytes);
        if e.length == 0 || e.offset < end_before || !aligned {
            return Err(bad(format!(
                "{} bytes at {}, empty, unaligned or out of order",
                e.length, e.offset
            )));
        }
        end_before = end;
        if e.kind == FrameExtentKind::Data {
            // No overflow: extents do not overlap and lie within the disk.
            data_bytes += e.length;
        }
    }
    if u64::try_from(frame.payload.len()) != Ok(data_bytes) {
        return Err(bad(format!(
            "{data_bytes} bytes of extents, but {} of payload",
            frame.payload.len()
        )));
    }
    let hash = Digest::from_bytes(*blake3::hash(&frame.payload).as_bytes());
    if hash != frame.hash {
        return Err(bad("a payload that does not match its hash".to_owned()));
    }
    Ok(())
}

/// The extents of a checked frame, each with its bytes; `None` stands for zeros.
pub(super) fn pieces(frame: &DataFrame) -> impl Iterator<Item = (Extent, Option<&[u8]>)> {
    let mut rest: &[u8] = &frame.payload;
    frame.extents.iter().map(move |e| {
        let extent = Extent::new(e.offset, e.length);
        match e.kind {
            FrameExtentKind::Zero => (extent, None),
            FrameExtentKind::Data => {
                let length = usize::try_from(e.length).expect("checked: within the payload");
                let (bytes, after) = rest.split_at(length);
                rest = after;
                (extent, Some(bytes))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sitepair_model::ids::DiskId;
    use sitepair_model::peer::FrameExtent;

    use super::*;

    const SIZE: u64 = 10 * 4096 + 512;

    fn frame(extents: &[(u64, u64, FrameExtentKind)], payload: usize) -> DataFrame {
        let payload = Bytes::from(vec![7_u8; payload]);
        DataFrame {
            disk: DiskId::from_bytes([1; 16]),
            extents: extents
                .iter()
                .map(|(offset, length, kind)| FrameExtent {
                    offset: *offset,
                    length: *length,
                    kind: *kind,
                })
                .collect(),
            hash: Digest::from_bytes(*blake3::hash(&payload).as_bytes()),
            payload,
        }
    }

    #[test]
    fn only_frames_within_the_disk_and_in_order_pass() {
        use FrameExtentKind::{Data, Zero};
        check(
            &frame(
                &[(0, 4096, Data), (8192, 4096, Zero), (36864, 4608, Data)],
                8704,
            ),
            SIZE,
        )
        .unwrap();
        for (extents, payload) in [
            (vec![], 0),
            (vec![(0, 0, Zero)], 0),
            (vec![(0, 512, Data)], 512),
            (vec![(512, 3584, Data)], 3584),
            (vec![(0, 8192, Data), (4096, 4096, Data)], 12288),
            (vec![(4096, 4096, Zero), (0, 4096, Zero)], 0),
            (vec![(40960, 4096, Data)], 4096),
            (vec![(u64::MAX - 4095, 4096, Zero)], 0),
            (vec![(0, 4096, Data)], 4095),
            (vec![(0, 4096, Zero)], 4096),
            (vec![(0, 4096, Zero); FRAME_EXTENTS_MAX + 1], 0),
        ] {
            let error = check(&frame(&extents, payload), SIZE).unwrap_err();
            assert!(
                matches!(error, ReplicaError::BadFrame { .. }),
                "{extents:?}"
            );
        }
        let mut tampered = frame(&[(0, 4096, Data)], 4096);
        tampered.hash = Digest::from_bytes([0; 32]);
        assert!(check(&tampered, SIZE).is_err());
    }
}
