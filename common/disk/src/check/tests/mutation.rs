//! Random damage: a check ends, without a panic, and within bounds.

use std::time::{Duration, Instant};

use super::*;
use crate::vhdx::layout::checksum;

const TURNS: u64 = 1200;
/// For all turns of one file; they take a small part of this.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Flips bytes at and after random ones of these places, then lets `seal` mend checksums, so that damage gets
/// through to what is behind them.
fn mutate(
    good: &[u8],
    format: CheckFormat,
    places: &[usize],
    seal: impl Fn(&mut [u8], &mut Random),
) {
    let began = Instant::now();
    let mut random = Random(11);
    let storage = storage_of(&[("/disk", good)]);
    let (mut clean, options) = (
        0,
        CheckOptions {
            format: Some(format),
            list_max: 4,
        },
    );
    for turn in 0..TURNS {
        let mut changed = Vec::new();
        for _ in 0..1 + random.below(4) {
            let at = places[random.index(places.len())] + random.index(96);
            if at < good.len() {
                changed.push((at, random.byte()));
            }
        }
        let mut bytes = good[..good.len().min(HEAD)].to_vec();
        for (at, byte) in &changed {
            if *at < bytes.len() {
                bytes[*at] = *byte;
            } else {
                storage.overwrite(path(), *at as u64, &[*byte]).unwrap();
            }
        }
        seal(&mut bytes, &mut random);
        storage.overwrite(path(), 0, &bytes).unwrap();
        let report = check(&storage, path(), options)
            .unwrap_or_else(|e| panic!("turn {turn}, {changed:?}: {e:?}"));
        assert!(report.findings.len() <= 4 * report.counts.codes.len());
        clean += u64::from(report.worst.is_none());
        for (at, _) in changed.iter().filter(|(at, _)| *at >= bytes.len()) {
            storage
                .overwrite(path(), *at as u64, &good[*at..=*at])
                .unwrap();
        }
        assert!(began.elapsed() < TIME_MAX, "turn {turn}, {changed:?}");
    }
    assert!(clean < TURNS / 2, "damage is found: {clean} clean turns");
}

/// Of larger files only this much is written anew each turn; the rest is put right byte by byte.
const HEAD: usize = 400 << 10;

#[test]
fn random_damage_of_vhdx() {
    let places = [
        65_536,
        131_072,
        196_608,
        262_144,
        1 << 20,
        (1 << 20) + 4096,
        2 << 20,
        (2 << 20) + 32,
        (2 << 20) + 65_536,
        3 << 20,
    ];
    mutate(
        &vhdx::good(),
        CheckFormat::Vhdx,
        &places,
        |bytes, random| {
            for (at, length) in [
                (65_536, 4096),
                (131_072, 4096),
                (196_608, 65_536),
                (262_144, 65_536),
            ] {
                if random.below(8) > 0 {
                    let crc = checksum(&bytes[at..at + length]);
                    put(bytes, at + 4, &crc.to_le_bytes());
                }
            }
        },
    );
}

#[test]
fn random_damage_of_vhd() {
    let good = vhd::dynamic();
    let places = [
        0,
        20,
        48,
        512,
        528,
        540,
        576,
        1536,
        1560,
        2048,
        good.len() - 512,
    ];
    mutate(&good, CheckFormat::Vhd, &places, |bytes, random| {
        let end = bytes.len() - 512;
        for (from, length, at) in [(0, 512, 64), (512, 1024, 36), (end, 512, 64)] {
            if random.below(8) > 0 {
                put(bytes, from + at, &[0; 4]);
                let part = &bytes[from..from + length];
                let sum = part.iter().map(|byte| u32::from(*byte)).sum::<u32>();
                put(bytes, from + at, &(!sum).to_be_bytes());
            }
        }
    });
}

#[test]
fn random_damage_of_change_logs() {
    use crate::hrl::format::sum;
    let good = hrl::good();
    let first = 4096 + 127 * 512;
    let places = [0, 40, 90, first, first + 32, first + 64, first + 4000];
    mutate(&good, CheckFormat::Hrl, &places, |bytes, random| {
        for (from, length, at) in [
            (0, 4096, 40),
            (first, 32, 12),
            (first + 32, 32, 8),
            (first + 64, 32, 8),
        ] {
            if random.below(8) > 0 {
                put(bytes, from + at, &[0; 4]);
                let total = sum(&bytes[from..from + length]);
                put(bytes, from + at, &(!total).to_le_bytes());
            }
        }
    });
}
