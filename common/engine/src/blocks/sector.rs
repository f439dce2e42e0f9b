//! Sets of blocks on disk: sectors of bits that can be told from damage.
//!
//! ```text
//! offset  length  content
//! 0       4       CRC-32C of bytes 4 to 511
//! 4       508     4064 bits, the lowest bit of a byte first
//! ```
//!
//! A sector of zeros is valid and empty, so that a hole in a file is an empty set. Disks write 512 bytes
//! whole or not at all: a checksum that is wrong is damage, not a torn write.

/// Bytes of one sector.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Bits in one sector.
pub(crate) const SECTOR_BITS: u64 = 4064;

/// One sector.
pub(crate) type Sector = [u8; SECTOR_BYTES];

/// A sector with these bits set.
pub(crate) fn encode_sector(bits: impl Iterator<Item = u64>) -> Sector {
    let mut sector = [0; SECTOR_BYTES];
    let mut any = false;
    for bit in bits {
        assert!(bit < SECTOR_BITS, "a bit lies in its sector");
        let byte = usize::try_from(bit / 8).expect("below 508");
        sector[4 + byte] |= 1 << (bit % 8);
        any = true;
    }
    if any {
        let crc = crc32c::crc32c(&sector[4..]);
        sector[..4].copy_from_slice(&crc.to_le_bytes());
    }
    sector
}

/// The set bits of a sector, or `None` when it is damaged.
pub(crate) fn decode_sector(sector: &[u8]) -> Option<impl Iterator<Item = u64>> {
    let crc = u32::from_le_bytes(*sector.first_chunk()?);
    let empty = sector.iter().all(|b| *b == 0);
    if !empty && crc != crc32c::crc32c(&sector[4..]) {
        return None;
    }
    let bytes = (0u64..).step_by(8).zip(&sector[4..]);
    Some(bytes.filter(|(_, b)| **b != 0).flat_map(|(at, byte)| {
        (0..8)
            .filter(move |bit| byte & (1 << bit) != 0)
            .map(move |bit| at + bit)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_comes_back_and_a_damaged_one_is_noticed() {
        let bits = [0, 1, 63, 64, 4063];
        let sector = encode_sector(bits.into_iter());
        assert_eq!(decode_sector(&sector).unwrap().collect::<Vec<_>>(), bits);
        let mut torn = sector;
        torn[300] ^= 1;
        assert!(decode_sector(&torn).is_none());
        assert_eq!(decode_sector(&[0; 512]).unwrap().count(), 0);
        assert_eq!(encode_sector(std::iter::empty()), [0; 512]);
    }
}
