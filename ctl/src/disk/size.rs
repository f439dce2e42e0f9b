//! Sizes for people.

use indicatif::BinaryBytes;

/// For people: `10.00 GiB (10737418240 bytes)`.
pub(super) fn both(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    format!("{} ({bytes} bytes)", BinaryBytes(bytes))
}
