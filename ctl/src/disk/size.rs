//! Sizes as people write them: `10G`, `512M`, `1048576`.
//!
//! Suffixes are binary (`K` = `Ki` = `KiB` = 1024, up to `P`), a fraction is allowed where the result is whole bytes.

use indicatif::BinaryBytes;

/// Suffixes in ascending order; each is 1024 times the one before.
const SUFFIXES: &str = "KMGTP";

/// A number of bytes, from `10G`, `1.5T`, `512`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no size; write bytes, or a number with K, M, G or T, such as 10G");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = shift(suffix).ok_or_else(wrong)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let too_large = || format!("{text} is more than can be counted in bytes");
    let bytes = whole
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == whole)
        .ok_or_else(too_large)?;
    if fraction.is_empty() {
        return Err(wrong());
    }
    let part =
        part(fraction, shift).ok_or_else(|| format!("{text} is no whole number of bytes"))?;
    bytes.checked_add(part).ok_or_else(too_large)
}

/// How far a suffix shifts to the left.
fn shift(suffix: &str) -> Option<u32> {
    let mut letters = suffix.chars();
    let Some(first) = letters.next() else {
        return Some(0);
    };
    let rest = letters.as_str();
    if !matches!(rest, "" | "i" | "iB" | "B") {
        return None;
    }
    if first == 'B' && rest.is_empty() {
        return Some(0);
    }
    let place = SUFFIXES.find(first.to_ascii_uppercase())?;
    Some(10 * (u32::try_from(place).ok()? + 1))
}

/// `0.FRACTION` times two to the power of `shift`, if that is whole.
fn part(fraction: &str, shift: u32) -> Option<u64> {
    /// More digits than any suffix can make whole.
    const DIGITS_MAX: usize = 18;
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() {
        return Some(0);
    }
    if fraction.len() > DIGITS_MAX {
        return None;
    }
    let unit = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = fraction.parse::<u128>().ok()? << shift;
    scaled
        .is_multiple_of(unit)
        .then(|| u64::try_from(scaled / unit).ok())
        .flatten()
}

/// For people: `10.00 GiB (10737418240 bytes)`.
pub(super) fn both(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    format!("{} ({bytes} bytes)", BinaryBytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("512", 512),
            ("512B", 512),
            ("4k", 4096),
            ("32M", 32 << 20),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10GB", 10 << 30),
            ("10Gi", 10 << 30),
            ("1.5T", 3 << 39),
            ("0.5K", 512),
            ("64T", 64 << 40),
            ("1P", 1 << 50),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for wrong in [
            "",
            "G",
            "10X",
            "-1",
            "+1G",
            "1..5G",
            "10Gx",
            "0.3",
            "1e3",
            "9999999P",
            "1.",
            ".5G",
            "18446744073709551616",
            "10 G",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(both(512), "512 bytes");
        assert_eq!(both(10 << 30), "10.00 GiB (10737418240 bytes)");
    }
}
