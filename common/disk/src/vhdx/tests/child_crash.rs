//! Power losses and kills while a differencing disk is written: a sector is old or new, or its parent's.

use super::super::layout::MIB;
use super::over::{base, child, level, open_chain, open_vhdx};
use crate::image::Image;
use crate::storage::fake::FakeStorage;
use crate::tests::crash::{Model, step};
use crate::tests::{Random, rounds, stamped, stamps};

/// What a power loss left is old or new.
fn assert_old_or_new(model: &Model, storage: &FakeStorage, what: &str) {
    let image = open_chain(storage, &level(1), true).unwrap_or_else(|e| panic!("{what}: {e}"));
    model.check(&*image, what);
}

const SECTORS: u64 = 6 * MIB / 512;

fn run_crash(seed: u64) {
    let what = format!("seed {seed}");
    let storage = FakeStorage::new();
    // Blocks over data, over zeros, and over both.
    base(&storage, SECTORS * 512, 0, 3 * 2048 + 500);
    let image = child(&storage, &level(1), &level(0), 1).unwrap();
    let mut random = Random(seed);
    let mut last = vec![0; usize::try_from(SECTORS).unwrap()];
    last[..3 * 2048 + 500].fill(1000);
    let mut model = Model::new(last);
    storage.die_after(storage.operation_count() + random.below(160));
    for stamp in 1..60 {
        let done = step(&image, &mut model, &mut random, MIB / 512, stamp);
        if done.is_err() {
            break;
        }
        if random.below(20) == 0 {
            let after = storage.crash(random.next() % 1000);
            assert_old_or_new(&model, &after, &format!("{what}, step {stamp}"));
        }
        if random.below(20) == 0 {
            // All that was answered is there after a kill.
            let after = open_chain(&storage.after_kill(), &level(1), true).unwrap();
            assert!(
                stamps(&*after, 0, SECTORS) == model.last(),
                "{what}, step {stamp}, kill"
            );
        }
    }
    assert!(image.flush().is_ok() || storage.is_dead());
    drop(image);
    for crash in [0, 1, 2, 3 + seed, 1000 + seed] {
        let after = storage.crash(crash);
        assert_old_or_new(&model, &after, &format!("{what}, crash {crash}"));
        // Recovery, cut short by another power loss.
        after.die_after(after.operation_count() + seed % 9);
        drop(open_vhdx(&after, &level(1), false));
        let again = after.crash(seed / 2);
        assert_old_or_new(&model, &again, &format!("{what}, crash {crash}, again"));
        let image = open_vhdx(&again, &level(1), false).unwrap();
        image.write_at(&stamped(9999, 8), 0, true).unwrap();
        image.close().unwrap();
        let image = open_chain(&again, &level(1), true).unwrap();
        assert_eq!(stamps(&*image, 0, 8), [9999; 8]);
    }
}

#[test]
fn after_a_power_loss_a_sector_is_old_or_new_and_after_a_kill_new() {
    for seed in 0..rounds(16, 100) {
        run_crash(seed);
    }
}

/// The worst order: of all that was not synced, the log survives and nothing else.
#[test]
fn a_bit_never_outlives_the_bytes_that_it_stands_for() {
    for count in 0..12 {
        let storage = FakeStorage::new();
        base(&storage, 8 * MIB, 0, 8 * 2048);
        let image = child(&storage, &level(1), &level(0), 1).unwrap();
        image.write_at(&stamped(1, 8), 0, true).unwrap();
        storage.die_after(storage.operation_count() + count);
        let mut answered = 0;
        for (from, stamp) in [(64, 2), (5 * 2048, 3), (128, 4)] {
            if image
                .write_at(&stamped(stamp, 8), from * 512, false)
                .is_ok()
            {
                answered += 1;
            }
        }
        let after = storage.crash(0);
        let log = super::super::create::LOG;
        let range = usize::try_from(log.offset).unwrap()..usize::try_from(log.end()).unwrap();
        let written = storage.after_kill().content(&level(1)).unwrap();
        after
            .overwrite(&level(1), log.offset, &written[range])
            .unwrap();
        let found = open_chain(&after, &level(1), true).unwrap();
        assert_eq!(stamps(&*found, 0, 8), [1; 8]);
        for (turn, (from, stamp)) in [(64, 2), (5 * 2048, 3), (128, 4)].into_iter().enumerate() {
            for found in stamps(&*found, from, 8) {
                assert!(
                    found == stamp || found == 1000,
                    "{count}: {found} at {from}"
                );
            }
            if turn < answered {
                let killed = open_chain(&storage.after_kill(), &level(1), true).unwrap();
                assert_eq!(stamps(&*killed, from, 8), [stamp; 8], "{count}");
            }
        }
    }
}
